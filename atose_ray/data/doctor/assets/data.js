// The doctor's page: tables of findings, players, histograms, bars of the classes, the map of the tags.

const scrolling = (headings, rows) => h("div", { class: "scroll" }, table(headings, rows, "wide"));

function tiles() {
  const { may_train: may, found, skipped, seconds, input, tags, exclusive } = REPORT.facts;
  const { splits, clips } = REPORT.classes;
  const all = splits.map((split) => clips[split] || 0);
  const unit = input.kind === "audio" ? `${input.sample_rate_hz} Hz, mono` : `${input.bins} bins, ${input.dtype}, ${number(input.rate_hz)} a second`;
  return [
    ["training", may ? "may start" : "must not start", ""],
    ["findings", plural(found.error || 0, "error"), `${plural(found.warning || 0, "warning")}, ${plural(found.note || 0, "note")}`],
    ["clips", count(all.reduce((sum, n) => sum + n, 0)), splits.map((split, i) => `${count(all[i])} ${split}`).join(", ")],
    ["not decoded", count(skipped), "all in quarantine.csv"],
    [input.kind, duration(seconds), unit],
    ["tags", count(tags), exclusive ? "one per clip" : "any number per clip"],
  ];
}

function drawTiles(host) {
  host.replaceChildren(...tiles().map(([title, text, small]) =>
    h("div", {}, h("dt", {}, title), h("dd", { class: text.length > 12 ? "words" : null }, text, h("small", {}, small)))));
}

function drawFindings(host) {
  if (!REPORT.findings.length) return host.replaceChildren(h("p", {}, "Nothing was found."));
  const rows = REPORT.findings.map((one) => [
    h("span", { class: `severity ${one.severity}` }, one.severity), one.kind, [h("bdi", {}, one.what), flagged(one)], one.hint,
  ]);
  return host.replaceChildren(scrolling([{ title: "" }, { title: "what" }, { title: "found" }, { title: "to do" }], rows));
}

function flagged({ clips, more }) {
  if (!clips.length) return null;
  const items = clips.map((one) => h("li", {}, h("code", {}, h("bdi", {}, one.name)), " ", h("span", { class: "soft" }, one.split), " ", h("bdi", {}, one.detail)));
  return folded("which", h("ul", {}, items), more ? h("p", {}, `and ${count(more)} more`) : null);
}

function drawPlayers(host) {
  document.getElementById("listen").hidden = !REPORT.players.length;
  const rows = REPORT.players.map((one) => [
    h("audio", { controls: true, preload: "none", src: `data:audio/wav;base64,${one.wav}` }),
    [h("code", {}, h("bdi", {}, one.name)), h("br"), h("span", { class: "soft" }, `${one.split}; `, h("bdi", {}, one.tags.join(", ")))],
    h("bdi", {}, one.why), `${one.seconds.toFixed(2)} s`,
  ]);
  host.replaceChildren(scrolling([{ title: "excerpt" }, { title: "file and tags" }, { title: "why" }, { title: "length", num: true }], rows));
}

// ---- histograms (`edges`, one more than counts) and bars of single values (`values`)

function drawPlots(host) {
  const figures = REPORT.plots.map((one) => h("figure", { class: "plot" }, h("h3", {}, one.title), h("div")));
  host.replaceChildren(...figures);
  figures.forEach((figure, i) => countPlot(figure.lastChild, REPORT.plots[i]));
}

function countPlot(host, { title, unit, edges, values, counts }) {
  const plot = frame(host, { height: 200, label: title, margin: { top: 12, right: 8, bottom: 40, left: 46 } });
  const most = Math.max(1, ...counts);
  const x = edges ? linear(edges[0], edges[edges.length - 1], plot.left, plot.right) : linear(-0.5, values.length - 0.5, plot.left, plot.right);
  const y = linear(0, most, plot.bottom, plot.top);
  for (const tick of wholeTicks(0, most, 3)) {
    plot.svg.append(s("line", { class: "grid", x1: plot.left, x2: plot.right, y1: y(tick), y2: y(tick) }),
      s("text", { x: plot.left - 6, y: y(tick) + 4, "text-anchor": "end" }, count(tick)));
  }
  counts.forEach((n, i) => {
    const [from, to] = edges ? [x(edges[i]), x(edges[i + 1]) - 1] : [x(i - 0.4), x(i + 0.4)];
    const what = edges ? `${number(edges[i])} to ${number(edges[i + 1])}` : values[i];
    const tip = (event) => showTip(event, [h("b", {}, `${what} ${unit}`), h("div", {}, plural(n, "clip"))]);
    if (n) plot.svg.append(s("rect", { class: "bar", x: from, y: y(n), width: Math.max(1, to - from), height: plot.bottom - y(n), onpointermove: tip, onpointerleave: hideTip }));
  });
  const every = edges ? x.ticks(5) : values.map((_, i) => i).filter((i) => i % Math.ceil(values.length / 8) === 0);
  xAxis(plot, x, every, unit, edges ? number : (i) => (values[i] < 1000 ? values[i] : String(values[i])));
}

// ---- classes: a row a tag, for each split its clips, their share and a bar

function drawClasses(host) {
  const { splits, clips, tags } = REPORT.classes;
  const rows = tags.map(([tag, of]) => ({ tag, counts: splits.map((split) => of[split] || 0) })).sort((a, b) => b.counts[0] - a.counts[0]);
  const most = Math.max(1, ...rows.flatMap((one) => one.counts));
  const bar = (n, split) => s("svg", { width: 120, height: 9, "aria-hidden": "true" }, s("rect", { class: split, width: (120 * n) / most, height: 9, rx: 2 }));
  const share = (n, total) => (total ? `${((100 * n) / total).toFixed(1)} %` : "no clips");
  const cells = (one) => one.counts.flatMap((n, i) => [count(n), h("span", { class: "soft" }, share(n, clips[splits[i]])), bar(n, splits[i])]);
  const heads = splits.flatMap((split) => [{ title: split, num: true }, { title: "share", num: true }, { title: "" }]);
  host.replaceChildren(scrolling([{ title: "tag" }, ...heads], rows.map((one) => [named(one.tag), ...cells(one)])));
}

// ---- the map: red above zero, blue below; the diagonal, and what is unknown, are grey

function drawMap(host) {
  document.getElementById("map").hidden = !REPORT.map;
  if (!REPORT.map) return host.replaceChildren();
  const { names, phi, of } = REPORT.map;
  if (names.length < 2) return empty(host, "There is one tag only.");
  const longest = Math.max(...names.map((name) => textWidth(name.slice(0, 400))));
  const room = Math.min(150, Math.ceil(longest) + 12);
  const cell = Math.max(9, Math.min(32, (Math.max(260, host.clientWidth) - room) / names.length));
  const size = Math.min(11, cell);
  const side = room + cell * names.length;
  const plot = frame(host, { height: Math.ceil(side), minWidth: Math.ceil(side), label: "Correlation of the tags", margin: { top: room, right: 0, bottom: 0, left: room } });
  names.forEach((name, row) => {
    const at = room + (row + 0.5) * cell + size * 0.35;
    const style = `font-size:${size}px`;
    plot.svg.append(s("text", { class: "ink", style, x: room - 5, y: at, "text-anchor": "end" }, fitText(name, room - 8, size)),
      s("text", { class: "ink", style, transform: `translate(${at} ${room - 5}) rotate(-90)` }, fitText(name, room - 8, size)));
    phi[row].forEach((value, column) => {
      const place = { x: room + column * cell, y: room + row * cell, width: cell, height: cell };
      if (row === column || !known(value)) return plot.svg.append(s("rect", { class: "track", ...place }));
      const tip = (event) => showTip(event, [h("b", {}, named(name), " and ", named(names[column])), h("div", {}, `phi ${value.toFixed(2)}`)]);
      return plot.svg.append(s("rect", { class: value > 0 ? "warm" : "cold", "fill-opacity": Math.abs(value), onpointermove: tip, onpointerleave: hideTip, ...place }));
    });
  });
  if (names.length < of) host.prepend(h("p", { class: "note" }, `The ${names.length} most frequent tags of ${count(of)}.`));
  return undefined;
}

// ---- draw everything, and what has a width again when that changes; one broken part must not take the rest

const PARTS = { tiles: drawTiles, findings: drawFindings, players: drawPlayers, plots: drawPlots, classes: drawClasses, map: drawMap };

function draw(names) {
  for (const name of names) {
    try {
      PARTS[name](document.querySelector(`[data-draw="${name}"]`));
    } catch (error) {
      document.documentElement.dataset.error = `${name}: ${error}`;
      const box = document.getElementById("errors");
      box.hidden = false;
      box.append(h("div", {}, `This part of the page could not be drawn: ${name} (${error}).`));
    }
  }
}

document.getElementById("sentence").textContent = `${REPORT.sentence}.`;
document.getElementById("hash").textContent = `content hash of the shards: ${REPORT.content_hash}`;
draw(Object.keys(PARTS));
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) draw(["plots", "map"]);
  width = innerWidth;
});
document.documentElement.dataset.ready = "true";
