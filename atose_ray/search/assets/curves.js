// Objective per trial, learning curves, and the timeline of the trials.

const MANY = 60; // from here on lines are thin and pale

// ---- history

function drawHistory(host) {
  const values = TRIALS.map((trial) => trial.value);
  if (!TRIALS.length) return empty(host, "No trial has started.");
  const plot = frame(host, {
    height: 330, label: `Best validation ${METRIC} of each trial in order of start`, margin: { top: 26, right: 14, bottom: 62, left: 52 },
  });
  const x = linear(-0.5, TRIALS.length - 0.5, plot.left + 6, plot.right - 6);
  const y = linear(...scoreExtent(values), plot.bottom, plot.top);
  yAxis(plot, y, `validation ${METRIC}`);
  const noScore = plot.bottom + 14;
  const axis = { ...plot, bottom: plot.bottom + 28 };
  if (values.some((value) => !known(value))) {
    plot.svg.append(s("text", { x: plot.left - 8, y: noScore + 4, "text-anchor": "end" }, "none"));
  }
  xAxis(axis, x, wholeTicks(0, TRIALS.length - 1, plot.width / 70), "trial, in order of start", (i) => TRIALS[i].number);
  plot.svg.append(s("path", { class: "bestline", d: bestSoFar(values, x, y) }));
  TRIALS.forEach((trial, i) => {
    const at = `translate(${x(i)} ${known(trial.value) ? y(trial.value) : noScore})`;
    if (trial.number === BEST) plot.svg.append(s("circle", { class: "focus", r: 9, transform: at }));
    plot.svg.append(clickable(shape(trial.state, { transform: at }), trial.number));
  });
}

function bestSoFar(values, x, y) {
  let best = -Infinity;
  let d = "";
  values.forEach((value, i) => {
    if (known(value) && value > best) {
      d += best === -Infinity ? `M${x(i)} ${y(value)}` : `H${x(i)}V${y(value)}`;
      best = value;
    }
  });
  return d && d + `H${x(values.length - 0.5)}`;
}

// ---- learning curves

let curveShown = METRIC;
const curveOf = (trial) => (curveShown === "train loss" ? trial.epochs.train_loss : trial.epochs.valid[curveShown] || []);

function curveChoices() {
  const names = new Set();
  for (const trial of TRIALS) Object.keys(trial.epochs.valid).forEach((name) => names.add(name));
  const sorted = [...names].sort((a, b) => (b === METRIC) - (a === METRIC) || a.localeCompare(b));
  return sorted.length ? [...sorted, "train loss"] : [];
}

function drawCurves(host) {
  const choices = curveChoices();
  if (!choices.length) return empty(host, "No trial has finished an epoch.");
  if (!choices.includes(curveShown)) curveShown = choices[0];
  const buttons = choices.map((name) => h("button", {
    type: "button", "aria-pressed": String(name === curveShown),
    onclick: () => { curveShown = name; drawCurves(host); showView(); document.querySelector("#curve-choice [aria-pressed=true]").focus(); },
  }, name === "train loss" ? name : "validation " + name));
  document.getElementById("curve-choice").replaceChildren(...buttons);
  marks = marks.filter((mark) => !host.contains(mark.node));
  plotCurves(host);
}

function plotCurves(host) {
  const plot = frame(host, {
    height: 420, label: `${curveShown} of every trial by epoch`, margin: { top: 42, right: 56, bottom: 42, left: 52 },
  });
  plot.svg.classList.toggle("many", TRIALS.length > MANY);
  const epochs = Math.max(...TRIALS.map((trial) => Math.max(0, ...trial.epochs.epoch)));
  const x = linear(1, Math.max(2, epochs), plot.left + 8, plot.right - 4);
  const y = curveScale(plot);
  yAxis(plot, y, curveShown === "train loss" ? "train loss" : `validation ${curveShown}`);
  xAxis(plot, x, wholeTicks(1, Math.max(2, epochs), plot.width / 60), "epoch, over all stages");
  drawBoundaries(plot, x);
  const lines = s("g", {});
  plot.svg.append(lines);
  const ordered = [...TRIALS].sort((a, b) => (a.number === BEST) - (b.number === BEST));
  const points = ordered.flatMap((trial) => drawCurve(lines, trial, x, y));
  endLabel(plot, points);
  followPointer(plot, points);
}

function curveScale(plot) {
  const values = TRIALS.flatMap(curveOf).filter(known);
  const [low, high] = extent(values, 0);
  if (curveShown === "train loss" && low > 0 && high / low > 50) return logarithmic(low, high, plot.bottom, plot.top);
  return linear(...(curveShown === "train loss" ? extent(values, 0.05) : scoreExtent(values)), plot.bottom, plot.top);
}

function drawCurve(lines, trial, x, y) {
  const values = curveOf(trial);
  const points = trial.epochs.epoch.map((epoch, i) => ({
    trial, i, epoch, value: values[i], x: x(epoch), y: known(values[i]) ? y(values[i]) : NaN,
  })).filter((point) => Number.isFinite(point.y));
  if (!points.length) return [];
  const best = trial.number === BEST ? " best" : "";
  lines.append(link(s("path", {
    class: `curve raise${best}`, stroke: best ? null : stateColor(trial.state), d: pointsPath(points.map((point) => [point.x, point.y])),
  }), trial.number));
  if (points.length === 1) lines.append(link(s("circle", { cx: points[0].x, cy: points[0].y, r: 2.5, fill: stateColor(trial.state) }), trial.number));
  return points;
}

function drawBoundaries(plot, x) {
  const found = new Map();
  for (const trial of TRIALS) {
    trial.epochs.stage.forEach((stage, i) => {
      if (i && stage !== trial.epochs.stage[i - 1]) found.set(`${trial.epochs.epoch[i]} ${trial.stages[stage]}`, [trial.epochs.epoch[i], trial.stages[stage]]);
    });
  }
  const sorted = [...found.values()].sort((a, b) => a[0] - b[0]);
  if (sorted.length > 12) return; // stages of very different lengths: the tooltip names the stage
  const ends = [-Infinity, -Infinity];
  for (const [epoch, stage] of sorted) {
    const at = x(epoch - 0.5);
    const text = shorten(stage, 22);
    const start = Math.min(at + 4, plot.width - textWidth(text, 10.5));
    const line = start > ends[0] ? 0 : 1;
    plot.svg.append(s("line", { class: "boundary", x1: at, x2: at, y1: plot.top - 8, y2: plot.bottom }));
    if (start > ends[line]) plot.svg.append(s("text", { class: "small halo", x: start, y: plot.top - 4 - 12 * line }, text));
    if (start > ends[line]) ends[line] = start + textWidth(text, 10.5) + 8;
  }
}

function endLabel(plot, points) {
  const last = points.filter((point) => point.trial.number === BEST).pop();
  if (last) plot.svg.append(s("text", { class: "strong halo", x: last.x + 6, y: last.y + 4 }, `best: ${BEST}`));
}

function followPointer(plot, points) {
  const dot = s("circle", { class: "focus", r: 5, visibility: "hidden" });
  plot.svg.append(dot);
  const near = (event) => {
    const box = plot.svg.getBoundingClientRect();
    const px = ((event.clientX - box.left) * plot.width) / box.width;
    const py = ((event.clientY - box.top) * plot.height) / box.height;
    let found = null;
    let least = 30 ** 2;
    for (const point of points) {
      if (view.kept && !view.kept.has(point.trial.number)) continue;
      const distance = (point.x - px) ** 2 + (point.y - py) ** 2;
      if (distance < least) [found, least] = [point, distance];
    }
    return found;
  };
  plot.svg.addEventListener("pointermove", (event) => {
    const point = near(event);
    dot.setAttribute("visibility", point ? "visible" : "hidden");
    if (!point) return hideTip();
    element(dot, { cx: point.x, cy: point.y }, []);
    return showTip(event, trialTip(point.trial, [
      `epoch ${point.epoch}, stage ${point.trial.stages[point.trial.epochs.stage[point.i]]}`, `${curveShown} here ${number(point.value)}`,
    ]));
  });
  plot.svg.addEventListener("pointerleave", () => { dot.setAttribute("visibility", "hidden"); hideTip(); });
  plot.svg.addEventListener("click", (event) => { const point = near(event); if (point) select(point.trial.number); });
}

// ---- timeline

function drawTimeline(host) {
  if (!TRIALS.length) return empty(host, "No trial has started.");
  const lanes = TRIALS.length <= 40 ? TRIALS.map((trial) => [trial]) : packLanes();
  const row = lanes.length > 40 ? 10 : 18;
  const plot = frame(host, {
    height: lanes.length * row + 62, label: "When each trial ran", margin: { top: 8, right: 14, bottom: 42, left: TRIALS.length <= 40 ? 40 : 12 },
  });
  const start = REPORT.study.started;
  const span = Math.max(REPORT.study.wall_seconds, 1e-3);
  const x = linear(0, span, plot.left, plot.right);
  const [unit, name] = span > 3 * 3600 ? [3600, "hours"] : span > 180 ? [60, "minutes"] : [1, "seconds"];
  const ticks = linearTicks(0, span / unit, plot.width / 90).map((tick) => tick * unit);
  ticks.forEach((tick) => plot.svg.append(s("line", { class: "grid", x1: x(tick), x2: x(tick), y1: plot.top, y2: plot.bottom })));
  xAxis(plot, x, ticks, `${name} since the first trial started`, (tick) => number(tick / unit));
  lanes.forEach((lane, i) => lane.forEach((trial) => plot.svg.append(spanBar(trial, x, start, plot.top + i * row, row))));
  if (TRIALS.length <= 40) TRIALS.forEach((trial, i) => plot.svg.append(
    s("text", { x: plot.left - 8, y: plot.top + i * row + row / 2 + 4, "text-anchor": "end" }, trial.number)));
}

function packLanes() {
  const lanes = [];
  for (const trial of TRIALS) {
    const free = lanes.find((lane) => lane[lane.length - 1].ended <= trial.started);
    if (free) free.push(trial);
    else lanes.push([trial]);
  }
  return lanes;
}

function spanBar(trial, x, start, top, row) {
  const from = x(trial.started - start);
  const width = Math.max(1.5, x(trial.ended - start) - from - (TRIALS.length > 40 ? 0.7 : 0));
  const node = s("rect", { x: from, y: top + 2, width, height: row - 4, rx: Math.min(2, width / 3), fill: stateColor(trial.state) });
  const facts = [`${duration(trial.ended - trial.started)} on ${trial.device}`, plural(trial.epochs.epoch.length, "epoch")];
  return clickable(node, trial.number, facts);
}

function drawDevices(host) {
  const rows = devices().map((device) => {
    const here = TRIALS.filter((trial) => trial.device === device);
    const seconds = here.flatMap((trial) => trial.epochs.seconds).filter(known);
    const busy = here.reduce((sum, trial) => sum + trial.ended - trial.started, 0);
    const range = seconds.length ? `${duration(extent(seconds)[0])} to ${duration(extent(seconds)[1])}` : "\u2013";
    return [device, count(here.length), duration(busy), count(seconds.length), duration(median(seconds)), range];
  });
  if (!rows.length) return host.replaceChildren();
  const headings = [
    { title: "Device" }, { title: "Trials", num: true }, { title: "Trial time", num: true }, { title: "Epochs", num: true },
    { title: "Per epoch, median", num: true }, { title: "Per epoch, range", num: true },
  ];
  return host.replaceChildren(h("div", { class: "scroll" }, table(headings, rows, "wide")));
}
