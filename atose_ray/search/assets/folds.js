// One configuration on every fold, the folds of a trial, and what each method and each encoder got.

function drawCrossvalidation(host) {
  const found = REPORT.crossvalidation;
  if (!found) return host.replaceChildren();
  const plot = h("div", { class: "plot" });
  const names = Object.keys(found.summary).sort((a, b) => (b === found.metric) - (a === found.metric));
  const whole = names.map((name) => [h("code", {}, name), score(found.summary[name].mean), score(found.summary[name].deviation), `${score(found.summary[name].low)} to ${score(found.summary[name].high)}`]);
  const headings = [{ title: "Test score" }, { title: "Mean", num: true }, { title: "Deviation", num: true }, { title: "95 % of the mean", num: true }];
  host.replaceChildren(
    trainedWords(found), plot,
    h("div", { class: "scroll" }, table(headings, whole)),
    h("p", { class: "note" }, `Mean over ${plural(found.folds.length, "fold")}, sample standard deviation, and Student's interval of the mean [${found.protocol}]. ` +
      "The folds share most of their training clips, so the interval is narrower than that of new data would be."),
    h("h3", {}, "Each fold on its own test clips"), foldTable(found, names),
  );
  const { mean, low, high } = found.summary[found.metric];
  return foldPlot(plot, found.folds.map((row) => ({ fold: row.fold, value: row.test[found.metric], bounds: (row.test_intervals || {})[found.metric] })), { title: `test ${found.metric}`, mean, low, high });
}

function trainedWords({ number: trained, overrides }) {
  if (!known(trained)) return "";
  const other = BEST !== null && trained !== BEST ? " It was the winner then; the search has chosen another one since." : "";
  const changed = overrides && overrides.length ? [" with ", h("code", {}, shorten(overrides.join(" "), 300))] : "";
  return h("p", {}, "The configuration of ", byNumber.has(trained) ? trialLink(byNumber.get(trained), titleOf(byNumber.get(trained), 80)) : `trial ${trained}`, changed, ".", other);
}

function foldTable(found, names) {
  const headings = [{ title: "Fold", num: true }, ...names.map((name) => ({ title: name, num: true })), { title: `Validation ${found.metric}`, num: true }, { title: "Epoch", num: true }, { title: "Seed", num: true }, { title: "Training", num: true }];
  const rows = found.folds.map((row) => [count(row.fold), ...names.map((name) => score(row.test[name])), score((row.valid || {})[found.metric]), count(row.epoch), String(row.seed), duration(row.seconds)]);
  return h("div", { class: "scroll" }, table(headings, rows, "wide"));
}

// folds: {fold, value, bounds}. A dot per fold, with its own interval where it has one; the line is their mean, the band
// the interval of the mean.
function foldPlot(host, folds, { title, mean, low, high }) {
  const shown = folds.filter((one) => known(one.value));
  const right = Math.max(80, (host.clientWidth || 600) - 50 - 90 * Math.max(2, folds.length));
  const plot = frame(host, { height: 230, label: `${title} of each fold`, margin: { top: 26, right, bottom: 42, left: 50 } });
  const y = linear(...extent([...shown.flatMap((one) => [one.value, ...(one.bounds || [])]), mean, low, high], 0.08), plot.bottom, plot.top);
  const x = linear(-0.5, Math.max(0.5, folds.length - 0.5), plot.left, plot.right);
  const end = plot.right;
  yAxis(plot, y, title);
  if (known(low) && high > low) plot.svg.append(s("rect", { x: plot.left, y: y(high), width: end - plot.left, height: Math.max(1, y(low) - y(high)), fill: "var(--complete)", opacity: 0.14 }));
  plot.svg.append(s("line", { class: "tick", x1: plot.left, x2: end, y1: y(mean), y2: y(mean) }), s("text", { class: "ink", x: end + 6, y: y(mean) + 4 }, `mean ${mean.toFixed(3)}`));
  plot.svg.append(s("line", { class: "axis", x1: plot.left, x2: end, y1: plot.bottom, y2: plot.bottom }), s("text", { class: "ink", x: end, y: plot.bottom + 34, "text-anchor": "end" }, "fold"));
  folds.forEach((one, i) => plot.svg.append(foldMark(plot, x(i), y, one, title)));
}

function foldMark(plot, x, y, { fold, value, bounds }, title) {
  const words = [h("b", {}, `fold ${fold}`), h("div", {}, `${title} ${score(value)}`), bounds ? h("div", {}, `95 % ${score(bounds[0])} to ${score(bounds[1])}`) : ""];
  const group = s("g", { onpointermove: (event) => showTip(event, words), onpointerleave: hideTip }, s("text", { x, y: plot.bottom + 17, "text-anchor": "middle" }, fold));
  if (!known(value)) return group;
  if (bounds) group.append(s("line", { x1: x, x2: x, y1: y(bounds[0]), y2: y(bounds[1]), stroke: "var(--complete)", "stroke-width": 2, opacity: 0.5 }));
  group.append(s("circle", { class: "fold", cx: x, cy: y(value), r: 5, fill: "var(--complete)", stroke: "var(--paper)" }));
  return group;
}

// ---- on the page of a trial that was trained on several folds

function drawTrialFolds(host, trial) {
  const scored = trial.folds.filter(known);
  const mean = scored.reduce((sum, value) => sum + value, 0) / scored.length;
  foldPlot(host, trial.folds.map((value, i) => ({ fold: i + 1, value })), { title: `validation ${METRIC}`, mean });
}

// ---- by method, by encoder

function drawGroups(host) {
  const parts = Object.entries(REPORT.groups).filter(([, rows]) => rows.length);
  host.replaceChildren(...parts.map(([part, rows]) => h("div", {}, h("h3", {}, `By ${part}`), h("div", { class: "scroll" }, groupTable(part, rows)))));
}

function groupTable(part, rows) {
  const headings = [{ title: part === "method" ? "Method" : "Encoder" }, { title: "Best score", num: true }, { title: "By trial", num: true }, { title: "Trials", num: true },
    { title: "Epochs, median", num: true }, { title: "Epochs, most", num: true }, { title: "Pruned", num: true }];
  return table(headings, rows.map((row) => [
    h("span", { class: "nowrap" }, named(row.kind, 60)), score(row.value), byNumber.has(row.number) ? trialLink(byNumber.get(row.number)) : "\u2013", count(row.trials),
    row.epochs ? number(row.epochs.median) : "\u2013", row.epochs ? count(row.epochs.most) : "\u2013", count(row.pruned),
  ]));
}
