// Marks of trials, on canvas, so that thousands stay quick. A layer has two sheets between the grid and the words of
// its plot: on the lower one all marks, on the upper one those of the marked and of the pointed-at trial.

let layers = [];

function inkNow() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries([...STATES, "ink", "accent"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

// items: {trial, ...}. draw(pen, item, strong, ink): one mark. find(x, y): the item there, or null. faint: alpha of a
// mark. tip(item): lines of the tooltip. focus(item): where the pointed-at item gets a ring.
function layer(plot, items, { draw, find, faint, tip, focus }) {
  const [base, top] = [sheet(plot), sheet(plot)];
  const ofTrial = new Map();
  for (const item of items) {
    const number = item.trial.number;
    if (ofTrial.has(number)) ofTrial.get(number).push(item);
    else ofTrial.set(number, [item]);
  }
  let near = null;
  const one = {
    plot, items, find,
    paint() {
      const pen = clean(base);
      const ink = inkNow();
      for (const item of items) {
        const out = view.kept !== null && !view.kept.has(item.trial.number);
        pen.globalAlpha = out ? 0.05 : item.trial.number === BEST ? 1 : faint || 1;
        draw(pen, item, false, ink);
      }
      base.classList.toggle("faded", view.selected !== null);
      one.paintTop();
    },
    paintTop() {
      const pen = clean(top);
      const ink = inkNow();
      for (const number of new Set([view.selected, view.pointed])) {
        for (const item of ofTrial.get(number) || []) draw(pen, item, true, ink);
      }
      const at = near && near.trial.number === view.pointed && focus && focus(near);
      if (at) ring(pen, at[0], at[1], 6, ink.ink);
    },
  };
  const move = (event) => {
    near = find(...placeIn(plot, event));
    plot.svg.style.cursor = near ? "pointer" : "";
    if (!near) return leave();
    view.pointed = null;
    point(near.trial.number);
    return showTip(event, trialTip(near.trial, tip && tip(near)));
  };
  const leave = () => {
    near = null;
    hideTip();
    point(null);
  };
  plot.svg.addEventListener("pointermove", move);
  plot.svg.addEventListener("pointerleave", leave);
  plot.svg.addEventListener("click", (event) => {
    const found = find(...placeIn(plot, event));
    if (found) openTrial(found.trial.number, event);
  });
  layers = layers.filter((other) => other.plot.svg.isConnected);
  layers.push(one);
  return one;
}

function sheet(plot) {
  const sharp = Math.min(2, Math.max(1, devicePixelRatio || 1));
  const canvas = h("canvas", { width: Math.round(plot.width * sharp), height: Math.round(plot.height * sharp), "aria-hidden": "true" });
  canvas.style.width = `${plot.width}px`;
  plot.host.insertBefore(canvas, plot.svg);
  return canvas;
}

function clean(canvas) {
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const sharp = canvas.width / parseFloat(canvas.style.width);
  pen.setTransform(sharp, 0, 0, sharp, 0, 0);
  pen.globalAlpha = 1;
  pen.lineJoin = "round";
  pen.lineCap = "round";
  return pen;
}

function placeIn(plot, event) {
  const box = plot.svg.getBoundingClientRect();
  return [((event.clientX - box.left) * plot.width) / box.width, ((event.clientY - box.top) * plot.height) / box.height];
}

function ring(pen, x, y, radius, color) {
  pen.globalAlpha = 1;
  pen.strokeStyle = color;
  pen.lineWidth = 1.5;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.stroke();
}

const STAMPS = Object.fromEntries(Object.entries(SHAPES).map(([state, d]) => [state, new Path2D(d)]));

// A point whose form and colour say the state; the chosen trial has a ring.
function stamp(pen, { trial, x, y }, strong, ink) {
  pen.save();
  pen.translate(x, y);
  if (strong) pen.scale(1.5, 1.5);
  pen.fillStyle = ink[trial.state];
  pen.fill(STAMPS[trial.state]);
  pen.restore();
  if (trial.number === BEST || strong) ring(pen, x, y, strong ? 10 : 9, ink.ink);
}

function nearest(items, reach) {
  return (x, y) => {
    let found = null;
    let least = reach ** 2;
    for (const item of items) {
      if (view.kept !== null && !view.kept.has(item.trial.number)) continue;
      const away = (item.x - x) ** 2 + (item.y - y) ** 2;
      if (away < least) [found, least] = [item, away];
    }
    return found;
  };
}

function polyline(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
}
