// Is the winner better, or lucky? Scores of trainings with other seeds, paired comparisons over clips, and what the
// search's best validation score promises too much.

function drawPromotion(host) {
  const found = REPORT.promotion;
  const parts = [];
  if (found && found.trials.length) {
    const plot = h("div", { class: "plot" });
    parts.push(h("p", { class: "note" }, `Each dot is one training with its own seed (validation ${found.metric}); the bar is the 95 % interval of their mean, its middle the mean.`), plot,
      h("h3", {}, "On the same clips"), comparisons(found));
  } else {
    parts.push(h("p", { class: "note" }, "The best trials were not trained again with other seeds, so how much of the difference between them is luck is not known: " +
      "treat trials whose scores lie close together as equal."));
    if (TRIALS.some((trial) => known(trial.value))) parts.push(h("p", { class: "note" }, "This command trains them, when the search has ended:"), commandLine(commandOf("promote")));
  }
  parts.push(...gap(found));
  host.replaceChildren(...parts);
  if (found && found.trials.length) plotSeeds(host.querySelector(".plot"), found);
}

function plotSeeds(host, found) {
  const rows = found.trials.map((one) => ({ name: byNumber.has(one.number) ? `${one.role}: trial ${one.number}` : one.role, detail: one.name, values: one.valid, mean: one.mean, low: one.low, high: one.high, diverged: one.diverged || 0 }));
  if (found.test) rows.push({ name: "winner on test", detail: "the same trainings, on the test split", ...found.test, test: true });
  const names = Math.max(...rows.map((row) => textWidth(row.name, 12))) + 18;
  const plot = frame(host, { height: rows.length * 34 + 48, label: `${found.metric} of trainings with other seeds`, margin: { top: 6, right: 20, bottom: 42, left: names } });
  const all = rows.flatMap((row) => [...row.values, row.low, row.high]);
  const x = linear(...extent(all, 0.05), plot.left, plot.right);
  const ticks = x.ticks(Math.max(3, plot.width / 110));
  ticks.forEach((tick) => plot.svg.append(s("line", { class: "grid", x1: x(tick), x2: x(tick), y1: plot.top, y2: plot.bottom })));
  xAxis(plot, x, ticks, found.metric);
  rows.forEach((row, i) => plot.svg.append(seedRow(plot, x, row, plot.top + i * 34 + 17)));
}

function seedRow(plot, x, row, y) {
  const color = row.test ? "var(--diverged)" : "var(--complete)";
  const group = s("g", {
    onpointerleave: hideTip,
    onpointermove: (event) => showTip(event, [h("b", {}, row.name), named(row.detail, 60), h("div", {}, `mean ${score(row.mean)} [${score(row.low)}, ${score(row.high)}]`), h("div", {}, row.values.map(score).join(", ")),
      row.diverged ? h("div", {}, `${plural(row.diverged, "training")} diverged`) : ""]),
  }, s("rect", { x: 0, y: y - 17, width: plot.width, height: 34, fill: "transparent" }), s("text", { class: "ink", x: plot.left - 10, y: y + 4, "text-anchor": "end" }, row.name));
  if (!row.values.length) {
    group.append(s("text", { x: plot.left + 8, y: y + 4 }, "no training finished an epoch"));
    return group;
  }
  if (row.high > row.low) group.append(s("rect", { x: x(row.low), y: y - 5, width: Math.max(1, x(row.high) - x(row.low)), height: 10, rx: 3, fill: color, opacity: 0.22 }));
  group.append(s("line", { class: "tick", x1: x(row.mean), x2: x(row.mean), y1: y - 10, y2: y + 10 }));
  row.values.forEach((value) => group.append(s("circle", { cx: x(value), cy: y, r: 4.5, fill: color, stroke: "var(--paper)" })));
  return group;
}

function comparisons(found) {
  if (!found.comparisons.length) return h("p", { class: "note" }, "No two of them were compared.");
  return h("ul", { class: "plain" }, found.comparisons.map((one) => h("li", {}, comparisonSentence(one))));
}

const decided = (one) => one.low > 0 || one.high < 0;

function comparisonSentence(one) {
  const [winner, loser, sign] = one.difference >= 0 ? [one.a, one.b, 1] : [one.b, one.a, -1];
  const [low, high] = sign > 0 ? [one.low, one.high] : [-one.high, -one.low];
  const who = [trialWord(winner), one.difference === 0 ? " equals " : " beats ", trialWord(loser)];
  const much = `by ${(sign * one.difference).toFixed(3)} [${[low, high].map((end) => end.toFixed(3).replace("-", "\u2212")).join(", ")}] on the same clips`;
  const share = `ahead in ${percent(sign > 0 ? one.better : 1 - one.better)} of ${count(one.resamples)} resamples of the clips`;
  return [...who, ` ${much}, ${share}: `, h("strong", {}, decided(one) ? "sure" : "not decided by these clips"), decided(one) ? " (the interval leaves zero out)." : " (the interval holds zero)."];
}

function trialWord(trialNumber) {
  if (byNumber.has(trialNumber)) return trialLink(byNumber.get(trialNumber), `trial ${trialNumber}`);
  const trained = REPORT.promotion.trials.find((one) => one.number === trialNumber);
  return trained ? `the ${trained.role}` : `trial ${trialNumber}`;
}

// ---- the search-overfit gap: best validation of the search, validation of other seeds, test

function gap(found) {
  const [best, test] = [bestValid(), tested()[METRIC]];
  const winner = found && found.trials.find((one) => one.role === "winner" && one.valid.length);
  const which = winner && winner.number !== BEST ? `Trial ${winner.number}'s` : "Its";
  const again = found && found.test ? found.test : null;
  if (!known(best) || (!known(test) && !again)) return [];
  const rows = [["The search's best on validation", "the highest of all trials: chosen because it was high", score(best), ""]];
  if (winner) rows.push([`${which} configuration with other seeds, on validation`, `mean of ${plural(winner.valid.length, "training")}, 95 % interval ${score(winner.low)} to ${score(winner.high)}`, score(winner.mean), signed(winner.mean - best)]);
  if (known(test)) rows.push(["The chosen model on test", interval(METRIC) ? `95 % interval over ${REPORT.best.metrics.folds ? "folds" : "clips"} ${score(interval(METRIC)[0])} to ${score(interval(METRIC)[1])}` : "the winner alone", score(test), signed(test - best)]);
  if (again) rows.push(["Those other trainings on test", `mean of ${plural(again.values.length, "training")}, 95 % interval ${score(again.low)} to ${score(again.high)}`, score(again.mean), signed(again.mean - best)]);
  const headings = [{ title: METRIC }, { title: "" }, { title: "Score", num: true }, { title: "Against the first", num: true }];
  const told = again ? again.mean : test;
  const words = told < best
    ? `The search promised ${(best - told).toFixed(4)} more than test holds: part of it is the choice of the luckiest of ${plural(TRIALS.filter((one) => known(one.value)).length, "score")}, part that the two splits differ.`
    : `Test holds what the search promised (${signed(told - best)}).`;
  return [h("h3", {}, "What the search promised, and what test says"), h("div", { class: "scroll" }, table(headings, rows, "wide")), h("p", { class: "note" }, words)];
}
