// Parallel coordinates with brushes, and the importances.

const brushes = new Map(); // axis name -> [top, bottom] in pixels of the plot

function drawParallel(host) {
  if (!TRIALS.length || !SPACE.length) return empty(host, "No trial has drawn a parameter yet.");
  const axes = parallelAxes();
  const plot = frame(host, {
    height: 440, minWidth: axes.length * 100, label: "Parameters and score of every trial", margin: { top: 58, right: 72, bottom: 50, left: 30 }, role: "group", layered: true,
  });
  plot.unused = plot.bottom + 30;
  axes.forEach((axis, i) => placeAxis(plot, axis, axes.length > 1 ? plot.left + (i * (plot.right - plot.left)) / (axes.length - 1) : plot.left));
  axes.forEach((axis) => drawAxisLine(plot, axis));
  axes.forEach((axis) => drawAxisText(plot, axis));
  const color = scoreColors();
  const items = [...TRIALS].sort(lowFirst).map((trial) => ({
    trial, color: known(trial.value) ? color(trial.value) : null, points: axes.map((axis) => [axis.x, threadY(plot, axis, trial)]),
  }));
  layer(plot, items, {
    draw: drawThread, find: nearestThread(items, axes), faint: TRIALS.length > MANY ? Math.max(0.12, 0.5 * Math.sqrt(MANY / TRIALS.length)) : 0.75,
    tip: ({ trial }) => [parameterLine(trial)],
  });
  axes.forEach((axis) => addBrush(plot, axes, axis));
  filterBrushed(plot, axes);
  return undefined;
}

const lowFirst = (a, b) => (a.number === BEST) - (b.number === BEST) || (known(a.value) ? a.value : -Infinity) - (known(b.value) ? b.value : -Infinity);

function parallelAxes() {
  const searched = SPACE.map((one) => ({
    ...one, title: shortName(one.path), note: (arms(one.path).pop() || {}).arm, of: (trial) => trial.params[one.path], absent: "not used",
  }));
  const score = {
    path: "objective", kind: "number", log: false, title: METRIC, note: null, of: (trial) => trial.value, absent: "no score", objective: true,
  };
  [score.low, score.high] = extent(TRIALS.map((trial) => trial.value), 0);
  if (score.low === score.high) [score.low, score.high] = extent([score.low], 0.1);
  return [...searched, score];
}

function placeAxis(plot, axis, x) {
  axis.x = x;
  if (axis.kind === "choice") {
    const keys = axis.choices.map((value) => JSON.stringify(value));
    const step = (plot.bottom - plot.top) / keys.length;
    axis.marks = axis.choices.map((value, i) => [plot.bottom - step * (i + 0.5), setting(value)]);
    axis.spread = Math.min(step * 0.3, 14);
    axis.y = (value) => (keys.includes(JSON.stringify(value)) ? plot.bottom - step * (keys.indexOf(JSON.stringify(value)) + 0.5) : NaN);
    return;
  }
  const useLog = axis.log && axis.low > 0;
  const scale = (useLog ? logarithmic : linear)(axis.low, axis.high, plot.bottom, plot.top);
  const ticks = scale.ticks(5).filter((tick) => tick >= axis.low && tick <= axis.high);
  axis.marks = ticks.map((tick) => [scale(tick), number(tick)]);
  axis.spread = 0;
  axis.y = (value) => (known(value) ? scale(value) : NaN);
}

function threadY(plot, axis, trial) {
  const value = axis.of(trial);
  const y = value === undefined || value === null ? NaN : axis.y(value);
  const shift = ((trial.number * 0.618034) % 1) - 0.5; // trials of one choice fan out, the same way on every axis
  return Number.isFinite(y) ? y + shift * 2 * axis.spread : plot.unused + shift * 8;
}

function drawThread(pen, { trial, points, color }, strong, ink) {
  const best = trial.number === BEST;
  pen.strokeStyle = best ? ink.ink : color || ink.failed;
  pen.lineWidth = strong ? 3.4 : best ? 2.8 : TRIALS.length > MANY ? 1 : 1.5;
  pen.setLineDash(color ? [] : [2, 3]);
  polyline(pen, points);
}

function nearestThread(items, axes) {
  return (x, y) => {
    const right = axes.findIndex((axis) => axis.x >= x);
    if (right < 1 || y < 40) return null;
    const share = (x - axes[right - 1].x) / (axes[right].x - axes[right - 1].x);
    let [found, least] = [null, 6];
    for (const item of items) {
      if (view.kept !== null && !view.kept.has(item.trial.number)) continue;
      const [from, to] = [item.points[right - 1][1], item.points[right][1]];
      const away = Math.abs(from + (to - from) * share - y) / Math.hypot(1, (to - from) / (axes[right].x - axes[right - 1].x));
      if (away < least) [found, least] = [item, away];
    }
    return found;
  };
}

const parameterLine = (trial) => Object.entries(trial.params).map(([name, value]) => `${shortName(name)} ${setting(value)}`).join(", ").slice(0, 600);

// A scale of lightness, low to high: readable without colour vision, and the high end stands out on both papers.
const RAMPS = { light: ["#d8c9a0", "#7fa79b", "#2b7499", "#08306b"], dark: ["#5d5136", "#4d7f78", "#5fb3d4", "#e4f5ff"] };

function rampColor(t) {
  const ramp = RAMPS[theme()];
  const place = Math.min(Math.max(t, 0), 1) * (ramp.length - 1);
  const i = Math.min(Math.floor(place), ramp.length - 2);
  return mix(ramp[i], ramp[i + 1], place - i);
}

function mix(from, to, share) {
  const channel = (text, i) => parseInt(text.slice(1 + 2 * i, 3 + 2 * i), 16);
  return `rgb(${[0, 1, 2].map((i) => Math.round(channel(from, i) + (channel(to, i) - channel(from, i)) * share)).join(",")})`;
}

function scoreColors() {
  const [low, high] = extent(TRIALS.map((trial) => trial.value), 0);
  return (value) => (known(value) ? rampColor(high > low ? (value - low) / (high - low) : 1) : "var(--failed)");
}

function drawAxisLine(plot, axis) {
  plot.svg.append(s("line", { class: "axis", x1: axis.x, x2: axis.x, y1: plot.top, y2: plot.bottom }));
  if (!axis.objective) return;
  for (let i = 0; i < 40; i += 1) {
    const height = (plot.bottom - plot.top) / 40;
    plot.svg.append(s("rect", { x: axis.x, y: plot.bottom - (i + 1) * height, width: 6, height: height + 0.5, fill: rampColor(i / 39) }));
  }
}

function drawAxisText(plot, axis) {
  const anchor = axis.x < 60 ? "start" : axis.objective ? "end" : "middle";
  const x = axis.x < 60 ? 2 : axis.objective ? plot.width - 4 : axis.x;
  plot.svg.append(
    s("text", { class: "strong", x, y: 16, "text-anchor": anchor }, fitText(axis.title, 96), s("title", {}, axis.path)),
    s("text", { class: "small", x, y: 31, "text-anchor": anchor }, fitText([axis.note && `if ${axis.note}`, axis.log && "log"].filter(Boolean).join(", "), 97, 10.5)),
  );
  for (const [y, text] of axis.marks) {
    plot.svg.append(
      s("line", { class: "axis", x1: axis.x - 3, x2: axis.x + 3, y1: y, y2: y }),
      s("text", { class: "halo small ink", x: axis.x + (axis.objective ? 11 : 7), y: y + 4, "pointer-events": "none" }, fitText(text, axis.objective ? 58 : 88, 10.5)),
    );
  }
  if (TRIALS.every((trial) => axis.of(trial) !== undefined && axis.of(trial) !== null)) return;
  plot.svg.append(
    s("circle", { cx: axis.x, cy: plot.unused, r: 2.5, fill: "var(--faint)" }),
    s("text", { class: "halo small", x: axis.x + 7, y: plot.unused + 4, "pointer-events": "none" }, axis.absent),
  );
}

// ---- brushes

function addBrush(plot, axes, axis) {
  const shown = s("rect", { class: "brush", x: axis.x - 7, width: 14, rx: 2, visibility: "hidden" });
  const grip = s("rect", { class: "grip", x: axis.x - 10, width: 20, y: plot.top - 8, height: plot.unused - plot.top + 18 });
  let from = null;
  const place = (event) => placeIn(plot, event)[1];
  grip.addEventListener("pointerdown", (event) => { from = place(event); grip.setPointerCapture(event.pointerId); });
  grip.addEventListener("pointermove", (event) => { if (from !== null) paintBrush(shown, [from, place(event)]); });
  grip.addEventListener("click", (event) => event.stopPropagation()); // a brush is no click on a thread
  grip.addEventListener("pointerup", (event) => {
    const range = [from, place(event)].sort((a, b) => a - b);
    from = null;
    if (range[1] - range[0] < 4) brushes.delete(axis.path);
    else brushes.set(axis.path, range);
    paintBrush(shown, brushes.get(axis.path));
    filterBrushed(plot, axes);
  });
  paintBrush(shown, brushes.get(axis.path));
  axis.shown = shown;
  plot.svg.append(shown, grip);
}

function paintBrush(shown, range) {
  shown.setAttribute("visibility", range ? "visible" : "hidden");
  if (range) element(shown, { y: Math.min(...range), height: Math.abs(range[1] - range[0]) }, []);
}

function filterBrushed(plot, axes) {
  const inside = (trial) => axes.every((axis) => {
    const range = brushes.get(axis.path);
    const y = threadY(plot, axis, trial);
    return !range || (y >= range[0] && y <= range[1]);
  });
  keepOnly(brushes.size ? new Set(TRIALS.filter(inside).map((trial) => trial.number)) : null);
  const controls = document.getElementById("parallel-controls");
  if (!brushes.size) return controls.replaceChildren();
  const clear = () => { brushes.clear(); axes.forEach((axis) => paintBrush(axis.shown, null)); filterBrushed(plot, axes); };
  return controls.replaceChildren(
    h("button", { type: "button", onclick: clear }, `Show all trials (${view.kept.size} of ${TRIALS.length} kept)`));
}

// ---- importances

function drawImportances(host) {
  const found = REPORT.importances;
  if (!found.length) return empty(host, "No trial has drawn a parameter yet.");
  const rows = found.map((one) => ({
    name: barName(one.path), value: one.value, tick: one.chance, text: percent(one.value), weak: known(one.value) && one.value <= one.chance,
    note: known(one.value) ? `${count(one.trials)} trials` : null, missing: known(one.value) ? null : one.note, tip: importanceTip(one),
  }));
  const top = Math.max(0.1, ...found.flatMap((one) => [one.value || 0, one.chance || 0]));
  bars(host, rows, { label: "Importance of each parameter", max: Math.min(1, Math.ceil(top * 10) / 10), axis: percent });
  return undefined;
}

function barName(text) {
  const where = arms(text).pop();
  return where ? `${shortName(text)} (if ${where.arm})` : shortName(text);
}

function importanceTip(one) {
  const lines = known(one.value)
    ? [`explains ${percent(one.value)} of the variance`, `up to ${percent(one.chance)} when shuffled`, `${count(one.trials)} trials`, one.note]
    : [one.note];
  return [h("b", {}, one.path), ...lines.filter(Boolean).map((line) => h("div", {}, line))];
}
