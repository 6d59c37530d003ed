// Objective per trial, learning curves, and the timeline of the trials.

const MANY = 60; // from here on lines are thin and pale

// ---- history

function drawHistory(host) {
  const values = TRIALS.map((trial) => trial.value);
  if (!TRIALS.length) return empty(host, "No trial has started.");
  const plot = frame(host, {
    height: 330, label: `Best validation ${METRIC} of each trial in order of start`, margin: { top: 26, right: 14, bottom: 62, left: 52 }, layered: true,
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
  const items = TRIALS.map((trial, i) => ({ trial, x: x(i), y: known(trial.value) ? y(trial.value) : noScore }));
  items.sort((a, b) => (a.trial.number === BEST) - (b.trial.number === BEST));
  return layer(plot, items, { draw: stamp, find: nearest(items, 16), faint: TRIALS.length > 4 * MANY ? 0.6 : 1 });
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

function curveChoices() {
  const names = REPORT.metrics.filter((name) => TRIALS.some((trial) => curveOf(trial, name).length));
  const sorted = names.sort((a, b) => (b === METRIC) - (a === METRIC) || a.localeCompare(b));
  return sorted.length ? [...sorted, LOSS] : [];
}

function drawCurves(host) {
  const choices = curveChoices();
  if (!choices.length) return empty(host, "No trial has finished an epoch.");
  if (!choices.includes(curveShown)) curveShown = choices[0];
  const buttons = choices.map((name) => h("button", {
    type: "button", "aria-pressed": String(name === curveShown),
    onclick: () => { curveShown = name; drawCurves(host); showView(); document.querySelector("#curve-choice [aria-pressed=true]").focus(); },
  }, name === LOSS ? name : "validation " + name));
  document.getElementById("curve-choice").replaceChildren(...buttons);
  return plotCurves(host);
}

function plotCurves(host) {
  const plot = frame(host, {
    height: 420, label: `${curveShown} of every trial by epoch`, margin: { top: 42, right: 56, bottom: 42, left: 52 }, layered: true,
  });
  const epochs = TRIALS.reduce((most, trial) => Math.max(most, trial.epochs), 0);
  const x = linear(1, Math.max(2, epochs), plot.left + 8, plot.right - 4);
  const y = curveScale(plot, TRIALS.map((trial) => curveOf(trial, curveShown)).flat(), curveShown);
  yAxis(plot, y, curveShown === LOSS ? LOSS : `validation ${curveShown}`);
  xAxis(plot, x, wholeTicks(1, Math.max(2, epochs), plot.width / 60), "epoch, over all stages");
  drawBoundaries(plot, x, stageStarts(TRIALS));
  const ordered = [...TRIALS].sort((a, b) => (a.number === BEST) - (b.number === BEST));
  const items = ordered.map((trial) => ({ trial, points: curvePoints(trial, curveShown, x, y) })).filter((item) => item.points.length);
  const points = items.flatMap((item) => item.points);
  const last = points.filter((one) => one.trial.number === BEST).pop();
  if (last) plot.svg.append(s("text", { class: "strong halo", x: last.x + 6, y: last.y + 4 }, `best: ${BEST}`));
  return layer(plot, items, {
    draw: drawCurve, find: nearest(points, 30), faint: TRIALS.length > MANY ? Math.max(0.12, 0.45 * Math.sqrt(MANY / TRIALS.length)) : 1,
    tip: (near) => [`epoch ${near.epoch}, stage ${stageAt(near.trial, near.epoch)}`, `${curveShown} ${number(near.value)}`], focus: (near) => [near.x, near.y],
  });
}

function curveScale(plot, values, name) {
  const [low, high] = extent(values, 0);
  if (name === LOSS && low > 0 && high / low > 50) return logarithmic(low, high, plot.bottom, plot.top);
  return linear(...(name === LOSS ? extent(values, 0.05) : scoreExtent(values)), plot.bottom, plot.top);
}

function curvePoints(trial, name, x, y) {
  const values = curveOf(trial, name);
  return epochsOf(trial).map((epoch, i) => ({ trial, epoch, value: values[i], x: x(epoch), y: known(values[i]) ? y(values[i]) : NaN }))
    .filter((one) => Number.isFinite(one.y));
}

function drawCurve(pen, { trial, points }, strong, ink) {
  const best = trial.number === BEST;
  pen.strokeStyle = ink[best ? "ink" : trial.state];
  pen.fillStyle = pen.strokeStyle;
  pen.lineWidth = strong ? 3.4 : best ? 2.6 : TRIALS.length > MANY ? 1 : 1.5;
  polyline(pen, points.map((one) => [one.x, one.y]));
  if (points.length > 1) return;
  pen.beginPath();
  pen.arc(points[0].x, points[0].y, 2.5, 0, 2 * Math.PI);
  pen.fill();
}

function stageStarts(trials) {
  const found = new Map();
  for (const trial of trials) {
    for (const [epoch, stage] of trial.bounds.slice(1)) found.set(`${epoch} ${trial.stages[stage]}`, [epoch, trial.stages[stage]]);
  }
  const sorted = [...found.values()].sort((a, b) => a[0] - b[0]);
  return sorted.length > 12 ? [] : sorted; // stages of very different lengths: the tooltip names the stage
}

function drawBoundaries(plot, x, starts) {
  const ends = [-Infinity, -Infinity];
  for (const [epoch, stage] of starts) {
    const at = x(epoch - 0.5);
    const text = shorten(stage, 22);
    const start = Math.min(at + 4, plot.width - textWidth(text, 10.5));
    const line = start > ends[0] ? 0 : 1;
    plot.back.append(s("line", { class: "boundary", x1: at, x2: at, y1: plot.top - 8, y2: plot.bottom }));
    if (start > ends[line]) plot.svg.append(s("text", { class: "small halo", x: start, y: plot.top - 4 - 12 * line }, text));
    if (start > ends[line]) ends[line] = start + textWidth(text, 10.5) + 8;
  }
}

// ---- when each trial ran

function drawTimeline(host) {
  if (!TRIALS.length) return empty(host, "No trial has started.");
  const lanes = TRIALS.length <= 40 ? TRIALS.map((trial) => [trial]) : packLanes();
  const row = Math.max(5, Math.min(18, Math.floor(700 / lanes.length)));
  const plot = frame(host, {
    height: lanes.length * row + 46, label: "When each trial ran", margin: { top: 4, right: 14, bottom: 42, left: TRIALS.length <= 40 ? 44 : 14 }, layered: true,
  });
  const start = REPORT.study.started;
  const x = clockAxis(plot, Math.max(REPORT.study.wall_seconds, 1e-3), "since the first trial started");
  const items = lanes.flatMap((lane, i) => lane.map((trial) => {
    const from = x(trial.started - start);
    const gap = TRIALS.length > 40 ? 0.7 : 0;
    return { trial, x: from, y: plot.top + i * row + 1, width: Math.max(1.5, x(trial.ended - start) - from - gap), height: Math.max(2, row - 3) };
  }));
  if (TRIALS.length <= 40) TRIALS.forEach((trial, i) => plot.svg.append(
    s("text", { x: plot.left - 8, y: plot.top + i * row + row / 2 + 4, "text-anchor": "end" }, trial.number)));
  return layer(plot, items, {
    draw: drawSpan, tip: ({ trial }) => [`${duration(trial.ended - trial.started)} on ${shorten(trial.device, 60)}`, plural(trial.epochs, "epoch")],
    find: (px, py) => items.find((one) => px >= one.x - 1 && px <= one.x + one.width + 1 && py >= one.y - 1 && py <= one.y + one.height + 1) || null,
  });
}

function clockAxis(plot, span, words) {
  const x = linear(0, span, plot.left, plot.right);
  const [unit, name] = span > 3 * 3600 ? [3600, "hours"] : span > 180 ? [60, "minutes"] : [1, "seconds"];
  const ticks = linearTicks(0, span / unit, plot.width / 90).map((tick) => tick * unit);
  ticks.forEach((tick) => plot.back.append(s("line", { class: "grid", x1: x(tick), x2: x(tick), y1: plot.top, y2: plot.bottom })));
  xAxis(plot, x, ticks, `${name} ${words}`, (tick) => number(tick / unit));
  return x;
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

function drawSpan(pen, { trial, x, y, width, height }, strong, ink) {
  pen.fillStyle = ink[strong ? "ink" : trial.state];
  pen.fillRect(x, y, width, height);
}

function drawDevices(host) {
  const rows = REPORT.devices.map(({ device, trials, busy, pace }) => [
    named(device), count(trials), duration(busy), count(pace ? pace.count : 0), duration(pace && pace.median),
    pace ? `${duration(pace.least)} to ${duration(pace.most)}` : "\u2013",
  ]);
  if (!rows.length) return host.replaceChildren();
  const headings = [
    { title: "Device" }, { title: "Trials", num: true }, { title: "Trial time", num: true }, { title: "Epochs", num: true },
    { title: "Per epoch, median", num: true }, { title: "Per epoch, range", num: true },
  ];
  return host.replaceChildren(h("div", { class: "scroll" }, table(headings, rows, "wide")));
}
