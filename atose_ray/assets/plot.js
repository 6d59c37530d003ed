// Frames, scales, ticks and axes of the plots.

const ruler = document.createElement("canvas").getContext("2d");

function textWidth(text, pixels) {
  ruler.font = `${pixels || 11.5}px system-ui, sans-serif`;
  return ruler.measureText(text).width;
}

function fitText(text, width, pixels) {
  const start = text.slice(0, 400);
  if (start === text && textWidth(text, pixels) <= width) return text;
  let [fits, not] = [1, start.length];
  while (not - fits > 1) {
    const middle = (fits + not) >> 1;
    if (textWidth(start.slice(0, middle) + "\u2026", pixels) <= width) fits = middle;
    else not = middle;
  }
  return start.slice(0, fits) + "\u2026";
}

function frame(host, options) {
  const width = Math.max(options.minWidth || 260, Math.floor(host.clientWidth || 600));
  const { top, right, bottom, left } = options.margin;
  const svg = s("svg", {
    width, height: options.height, viewBox: `0 0 ${width} ${options.height}`, role: options.role || "img", "aria-label": options.label,
  });
  const back = options.layered ? s("svg", { class: "back", width, height: options.height, viewBox: `0 0 ${width} ${options.height}`, "aria-hidden": "true" }) : svg;
  host.replaceChildren(...(options.layered ? [back, svg] : [svg]));
  return { host, svg, back, width, height: options.height, left, top, right: width - right, bottom: options.height - bottom };
}

const empty = (host, text) => host.replaceChildren(h("p", { class: "note" }, text));

function linear(from, to, start, end) {
  const span = to - from || 1;
  const scale = (value) => start + ((value - from) / span) * (end - start);
  scale.ticks = (n) => linearTicks(from, to, n);
  return scale;
}

function logarithmic(from, to, start, end) {
  const inner = linear(Math.log10(from), Math.log10(to), start, end);
  const scale = (value) => inner(Math.log10(value));
  scale.ticks = () => logTicks(from, to);
  return scale;
}

function linearTicks(from, to, n) {
  const rough = (to - from || 1) / Math.max(1, n);
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * unit).find((one) => one >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(from / step - 1e-9); i * step <= to + step * 1e-9; i += 1) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(from, to) {
  const ticks = [];
  for (let power = Math.ceil(Math.log10(from) - 1e-9); power <= Math.log10(to) + 1e-9; power += 1) ticks.push(10 ** power);
  return ticks.length >= 2 ? ticks : [from, to];
}

function extent(values, pad) {
  const found = values.filter(known);
  if (!found.length) return [0, 1];
  let low = Infinity;
  let high = -Infinity;
  for (const value of found) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const space = (high - low || Math.abs(high) || 1) * (pad || 0);
  return [low - space, high + space];
}

const scoreExtent = (values) => {
  const [low, high] = extent(values, 0.06);
  return [Math.max(low, Math.min(0, extent(values, 0)[0])), high];
};

function yAxis(plot, y, title) {
  const ticks = y.ticks(Math.max(4, Math.round((plot.bottom - plot.top) / 42)));
  for (const tick of ticks) {
    plot.back.append(s("line", { class: "grid", x1: plot.left, x2: plot.right, y1: y(tick), y2: y(tick) }));
    plot.svg.append(s("text", { x: plot.left - 8, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  plot.svg.append(s("text", { class: "ink", x: 0, y: 11 }, title));
}

function xAxis(plot, x, ticks, title, write) {
  plot.svg.append(s("line", { class: "axis", x1: plot.left, x2: plot.right, y1: plot.bottom, y2: plot.bottom }));
  for (const tick of ticks) {
    plot.svg.append(
      s("line", { class: "axis", x1: x(tick), x2: x(tick), y1: plot.bottom, y2: plot.bottom + 4 }),
      s("text", { x: x(tick), y: plot.bottom + 17, "text-anchor": "middle" }, (write || number)(tick)),
    );
  }
  plot.svg.append(s("text", { class: "ink", x: plot.right, y: plot.bottom + 34, "text-anchor": "end" }, title));
}

const wholeTicks = (from, to, n) => [...new Set(linearTicks(from, to, n).filter(Number.isInteger))];
const pointsPath = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// ---- horizontal bars with a tick: importances and average precision

function bars(host, rows, options) {
  const row = 22;
  const space = Math.floor((host.clientWidth || 600) * 0.36);
  const names = Math.min(space, Math.ceil(Math.max(...rows.map((one) => textWidth(one.name)))) + 12);
  const notes = Math.min(space, Math.ceil(Math.max(...rows.map((one) => textWidth(one.note || "")))) + 58);
  const plot = frame(host, {
    height: rows.length * row + 26, label: options.label, margin: { top: 4, right: notes, bottom: 22, left: names },
  });
  const x = linear(0, options.max, plot.left, plot.right);
  for (const tick of x.ticks(plot.right - plot.left > 350 ? 5 : 2)) {
    plot.svg.append(
      s("line", { class: "grid", x1: x(tick), x2: x(tick), y1: plot.top, y2: plot.bottom }),
      s("text", { x: x(tick), y: plot.bottom + 15, "text-anchor": "middle" }, options.axis(tick)),
    );
  }
  rows.forEach((one, i) => plot.svg.append(bar(plot, x, one, plot.top + i * row, row)));
}

function bar(plot, x, one, top, row) {
  const middle = top + row / 2;
  const group = s("g", { onpointermove: (event) => showTip(event, one.tip), onpointerleave: hideTip },
    s("rect", { x: 0, y: top, width: plot.width, height: row, fill: "transparent" }),
    s("text", { class: "ink", x: plot.left - 10, y: middle + 4, "text-anchor": "end" }, fitText(one.name, plot.left - 10)));
  if (known(one.value)) {
    const end = Math.max(x(Math.max(one.value, 0)), plot.left + 1.5);
    group.append(s("rect", { class: one.weak ? "bar weak" : "bar", x: plot.left, y: top + 4, width: end - plot.left, height: row - 8, rx: 2 }));
  }
  if (known(one.tick)) group.append(s("line", { class: "tick", x1: x(one.tick), x2: x(one.tick), y1: top + 2, y2: top + row - 2 }));
  const room = plot.width - plot.right - 52;
  if (one.missing) group.append(s("text", { x: plot.left + 6, y: middle + 4 }, fitText(one.missing, plot.width - plot.left - 6)));
  else group.append(
    s("text", { class: "strong", x: plot.right + 44, y: middle + 4, "text-anchor": "end" }, known(one.value) ? one.text : ""),
    s("text", { x: plot.right + 52, y: middle + 4 }, fitText(one.note || "", room)),
  );
  return group;
}
