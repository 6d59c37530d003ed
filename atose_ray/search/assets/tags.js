// Average precision per tag, and the two heat maps of tags.

const LONG = 60; // from here on a list of tags scrolls

function drawPerTag(host) {
  const all = REPORT.best ? REPORT.best.metrics.per_tag || [] : [];
  if (!all.length) return empty(host, REPORT.best ? "No score per tag was recorded." : "No model was chosen, so test was not scored.");
  const chart = h("div", {});
  host.replaceChildren(...(REPORT.classes ? [...bestClasses(), h("h3", {}, "Average precision")] : []), chart);
  return tagBars(chart, all, "test");
}

function tagBars(host, all, split) {
  const scored = all.filter((one) => known(one.average_precision)).sort((a, b) => b.average_precision - a.average_precision);
  const left = all.filter((one) => !known(one.average_precision)).map((one) => one.tag);
  const chart = h("div", scored.length > LONG ? { class: "tall", tabindex: 0 } : {});
  host.replaceChildren(chart);
  const words = split === "test" ? "test" : "validation";
  if (scored.length) bars(chart, scored.map((one) => tagRow(one, words)), { label: `Average precision of each tag on ${words}`, max: 1, axis: number });
  const names = left.length ? `: ${left.slice(0, 60).map((name) => shorten(name, 60)).join(", ")}${left.length > 60 ? " \u2026" : ""}.` : ".";
  host.append(h("p", { class: "note" }, left.length
    ? `Not scored, because no ${words} clip carries them (${plural(left.length, "tag")} of ${all.length})${names}`
    : `All ${plural(all.length, "tag")} have a positive ${words} clip and are scored.`));
  return undefined;
}

function tagRow(one, words) {
  const prevalence = one.clips ? one.positives / one.clips : null;
  return {
    name: one.tag, value: one.average_precision, tick: prevalence, text: one.average_precision.toFixed(3),
    weak: known(prevalence) && one.average_precision <= prevalence, note: `${count(one.positives)} of ${count(one.clips)}`,
    tip: [h("b", {}, named(one.tag)), ...[
      `average precision ${score(one.average_precision)}`, `ROC-AUC ${score(one.roc_auc)}`,
      `${count(one.positives)} of ${count(one.clips)} ${words} clips (${percent(prevalence)})`,
    ].map((line) => h("div", {}, line))],
  };
}

// ---- heat maps

const DIVERGING = { light: ["#2166ac", "#92c5de", "#f6f5f2", "#f4a582", "#b2182b"], dark: ["#74b9f5", "#2f6690", "#23282d", "#9a5438", "#ff9d76"] };

function divergingColor(value, limit) {
  const colors = DIVERGING[theme()];
  const place = ((Math.min(Math.max(value / limit, -1), 1) + 1) / 2) * 4;
  const i = Math.min(Math.floor(place), 3);
  return mix(colors[i], colors[i + 1], place - i);
}

function drawTagMaps(host) {
  const maps = REPORT.tag_maps;
  if (!maps.order.length) return empty(host, "No tag correlation was recorded.");
  const shown = [];
  if (maps.correlation.length) shown.push(["Correlation in the data", maps.correlation, "Correlation of the tags in the data"]);
  if (maps.cosine) shown.push(["Cosine of the learned embeddings", maps.cosine, "Cosine of the learned tag embeddings"]);
  const boxes = shown.map(([title]) => h("div", {}, h("h3", {}, title), h("div", { class: "plot" })));
  host.replaceChildren(...[collapseWarning(), agreement(), h("div", { class: "maps" }, boxes), strongestPairs()].filter(Boolean));
  const both = [];
  shown.forEach(([, matrix, label], i) => both.push(heatMap(boxes[i].lastChild, matrix, label, both)));
  return undefined;
}

function collapseWarning() {
  if (REPORT.tag_maps.collapsed !== true) return null;
  return h("p", { class: "warning" }, h("strong", {}, "The tag embeddings have collapsed: "),
    "all tags lie at nearly the same point, so the embedding space says nothing about how they relate. The pairwise margin " +
    "objective is known to do this, because its minimum pulls both sides to one constant vector. Compare with a trial that " +
    "used info_nce.");
}

function agreement() {
  const maps = REPORT.tag_maps;
  if (!maps.correlation.length) return h("p", { class: "note" }, `Embeddings of trial ${shorten(maps.trial, 120)}. The tags exclude each other, so the data has no pattern to compare with.`);
  if (maps.cosine && known(maps.agreement)) {
    return h("p", {}, `Embeddings of trial ${shorten(maps.trial, 120)}. Agreement of the two maps: Pearson correlation `, h("strong", {}, maps.agreement.toFixed(2)),
      ` over the ${count((maps.order.length * (maps.order.length - 1)) / 2)} pairs of tags.`);
  }
  if (maps.cosine) return h("p", { class: "note" }, "The agreement of the two maps is undefined: one of them is constant, or there are fewer than three pairs.");
  return h("p", { class: "note" }, "No finished trial has tag embeddings (a supervised model scores tags without them), so only the data is shown.");
}

function offDiagonalLimit(matrix) {
  let most = 0;
  matrix.forEach((row, i) => row.forEach((value, j) => { if (i !== j && known(value)) most = Math.max(most, Math.abs(value)); }));
  return Math.min(1, Math.max(0.1, Math.ceil(most * 10 - 1e-9) / 10));
}

function heatMap(host, matrix, title, both) {
  const { order } = REPORT.tag_maps;
  const names = order.map((i) => REPORT.data.tags[i] || String(i));
  const width = Math.max(260, Math.floor(host.clientWidth || 500));
  const room = Math.min(Math.ceil(Math.max(...names.map((name) => textWidth(name)))) + 10, width * 0.3, 150);
  const cell = Math.min((width - room) / names.length, 40);
  const side = cell * names.length;
  const plot = frame(host, { height: Math.ceil(side + room + 52), label: title, margin: { top: room, right: 0, bottom: 0, left: room } });
  const limit = offDiagonalLimit(matrix);
  plot.svg.append(s("image", { class: "pixels", href: pixels(matrix, order, limit), x: room, y: room, width: side, height: side, preserveAspectRatio: "none" }));
  const fontSize = Math.min(11.5, cell * 0.98);
  if (fontSize >= 6.5) names.forEach((name, k) => mapLabel(plot, name, room, cell, k, fontSize));
  mapLegend(plot, limit, room, side);
  const cross = s("path", { class: "cross" });
  plot.svg.append(cross);
  const map = { plot, names, room, cell, side, cross, row: 0, column: 1, both };
  listenMap(map);
  return map;
}

function pixels(matrix, order, limit) {
  const canvas = document.createElement("canvas");
  canvas.width = order.length;
  canvas.height = order.length;
  const pen = canvas.getContext("2d");
  order.forEach((i, row) => order.forEach((j, column) => {
    const value = matrix[i][j];
    pen.fillStyle = i === j || !known(value) ? { light: "#c9cdd1", dark: "#4a5159" }[theme()] : divergingColor(value, limit);
    pen.fillRect(column, row, 1, 1);
  }));
  return canvas.toDataURL();
}

function mapLabel(plot, name, room, cell, k, fontSize) {
  const at = room + (k + 0.5) * cell;
  const text = fitText(name, room - 8, fontSize);
  plot.svg.append(
    s("text", { class: "ink", x: room - 5, y: at + fontSize * 0.35, "text-anchor": "end", style: `font-size:${fontSize}px` }, text),
    s("text", { class: "ink", transform: `translate(${at + fontSize * 0.35} ${room - 5}) rotate(-90)`, style: `font-size:${fontSize}px` }, text),
  );
}

function mapLegend(plot, limit, room, side) {
  const width = Math.min(200, side);
  const top = room + side + 14;
  for (let i = 0; i < 50; i += 1) {
    plot.svg.append(s("rect", { x: room + (i * width) / 50, y: top, width: width / 50 + 0.5, height: 9, fill: divergingColor((i / 24.5 - 1) * limit, limit) }));
  }
  [-limit, 0, limit].forEach((value, i) => plot.svg.append(
    s("text", { x: room + (i * width) / 2, y: top + 23, "text-anchor": ["start", "middle", "end"][i] }, number(value).replace("-", "\u2212"))));
}

function listenMap(map) {
  const { svg } = map.plot;
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = map.plot.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * scale - map.room) / map.cell);
    const row = Math.floor(((event.clientY - box.top) * scale - map.room) / map.cell);
    if (row < 0 || column < 0 || row >= map.names.length || column >= map.names.length) return leaveMap(map);
    return pointAt(map, row, column, event);
  });
  svg.addEventListener("pointerleave", () => leaveMap(map));
  svg.addEventListener("blur", () => leaveMap(map));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const inside = (value) => Math.min(Math.max(value, 0), map.names.length - 1);
    const [row, column] = [inside(map.row + step[0]), inside(map.column + step[1])];
    const box = svg.getBoundingClientRect();
    pointAt(map, row, column, { clientX: box.left + map.room + (column + 1) * map.cell, clientY: box.top + map.room + (row + 1) * map.cell });
  });
}

function pointAt(map, row, column, place) {
  for (const one of map.both) {
    const [x, y] = [one.room + column * one.cell, one.room + row * one.cell];
    one.cross.setAttribute("d", `M${x} ${y}h${one.cell}v${one.cell}h${-one.cell}ZM${one.room} ${y + one.cell / 2}H${x}M${x + one.cell / 2} ${one.room}V${y}`);
    [one.row, one.column] = [row, column];
  }
  const { order, correlation, cosine } = REPORT.tag_maps;
  const lines = correlation.length ? [`correlation in the data ${number(correlation[order[row]][order[column]])}`] : [];
  if (cosine) lines.push(`cosine of the embeddings ${number(cosine[order[row]][order[column]])}`);
  showTip(place, [h("b", {}, named(map.names[row]), " and ", named(map.names[column])), ...lines.map((line) => h("div", {}, line))]);
}

function leaveMap(map) {
  map.both.forEach((one) => one.cross.setAttribute("d", ""));
  hideTip();
}

function strongestPairs() {
  const { correlation, cosine } = REPORT.tag_maps;
  const pairs = [];
  correlation.forEach((row, i) => row.forEach((value, j) => { if (i < j && known(value)) pairs.push([i, j, value]); }));
  if (!pairs.length) return null;
  const top = pairs.sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 12);
  const headings = [{ title: "Tags" }, { title: "Correlation in the data", num: true }];
  if (cosine) headings.push({ title: "Cosine of the embeddings", num: true });
  const tagName = (i) => named(REPORT.data.tags[i] || String(i));
  const rows = top.map(([i, j, value]) => [h("span", {}, tagName(i), " and ", tagName(j)), value.toFixed(2), ...(cosine ? [known(cosine[i][j]) ? cosine[i][j].toFixed(2) : "\u2013"] : [])]);
  return folded("The strongest pairs as a table", table(headings, rows));
}
