// Two trials side by side: scores, configurations with their differences, curves over each other.

function drawComparePage(host, first, second) {
  const curves = h("div", { class: "smalls" });
  const pair = first && second ? [first, second] : null;
  host.replaceChildren(
    h("header", {}, h("nav", { "aria-label": "Comparison" }, h("a", { href: "#summary" }, "\u2190 the whole search"), pair && pair.map((trial) => trialLink(trial, `trial ${trial.number}`))),
      h("p", { class: "eyebrow" }, `Comparison, ${shorten(REPORT.study.name, 80)}`), h("h1", { tabindex: -1 }, pair ? `Trials ${first.number} and ${second.number}` : "Compare two trials")),
    h("div", { class: "pair" }, chooser("First", first, (n) => pairHash(n, second && second.number)), chooser("Second", second, (n) => pairHash(first && first.number, n)),
      pair && h("a", { href: pairHash(second.number, first.number) }, "swap")),
    ...(pair ? [
      verdict(first, second), section("Scores", "Each at the trial's best epoch, on the validation split. One training each: a small difference may be luck of the seed and of the clips.", scoreTable(first, second)),
      section("Configuration", "", configTable(first, second)), section("Curves", `Trial ${first.number} is the full line, trial ${second.number} the dashed one.`, curves),
    ] : [h("p", { class: "note" }, TRIALS.length < 2 ? "It takes two trials to compare." : "Choose two trials.")]));
  if (pair) drawTrialCurves(curves, pair);
}

const pairHash = (a, b) => `#compare-${a === null || a === undefined ? "" : a}${b === null || b === undefined ? "" : "-" + b}`;

function chooser(title, chosen, hash) {
  const sorted = [...TRIALS].sort((a, b) => a.number - b.number);
  const choices = sorted.map((trial) => h("option", { value: trial.number, selected: trial === chosen }, `${label(trial)}${known(trial.value) ? ", " + score(trial.value) : ""} (${trial.state})`));
  const empty = chosen ? [] : [h("option", { value: "", selected: true }, "choose a trial")];
  const box = h("select", { onchange: () => { location.hash = hash(box.value === "" ? null : Number(box.value)); } }, empty, choices);
  return h("label", {}, h("span", {}, title), box);
}

// What the paired bootstrap says of these two, where they were among the trials trained again.
function verdict(first, second) {
  const found = REPORT.promotion && REPORT.promotion.comparisons.find((one) => [one.a, one.b].includes(first.number) && [one.a, one.b].includes(second.number));
  return found ? h("p", {}, comparisonSentence(found)) : "";
}

function scoreTable(first, second) {
  const names = [...REPORT.metrics].sort((a, b) => (b === METRIC) - (a === METRIC));
  const rows = names.map((name) => [h("code", {}, name), ...figures(scoreOf(first, name), scoreOf(second, name), score)]).filter((row) => row[1] !== "\u2013" || row[2] !== "\u2013");
  const facts = [
    ["Epochs", first.epochs, second.epochs, count], ["Training, all epochs", first.pace && first.pace.total, second.pace && second.pace.total, duration],
    ["Median time of an epoch", first.pace && first.pace.median, second.pace && second.pace.median, duration], ["Parameters", first.parameters, second.parameters, size],
    ["Latency of one clip, ms", first.latency_ms, second.latency_ms, number],
  ].filter(([, a, b]) => known(a) || known(b)).map(([name, a, b, show]) => [name, show(a), show(b), known(a) && known(b) && b ? `\u00d7 ${number(a / b)}` : "\u2013"]);
  const words = [["State", stateWord(first.state), stateWord(second.state), ""], ["Device", shorten(first.device, 60), shorten(second.device, 60), ""]];
  return h("div", { class: "scroll" }, table(pairHeadings("", first, second, "Difference"), [...rows, ...facts, ...words], "wide"));
}

const scoreOf = (trial, name) => trial.scores[REPORT.metrics.indexOf(name)];
const figures = (a, b, show) => [show(a), show(b), known(a) && known(b) ? signed(a - b) : "\u2013"];
const pairHeadings = (title, first, second, last) => [
  { title }, { title: `Trial ${first.number}`, num: true }, { title: `Trial ${second.number}`, num: true }, ...(last ? [{ title: last, num: true }] : []),
];

function configTable(first, second) {
  const [a, b] = [configOf(first), configOf(second)];
  const names = [...new Set([...a.keys(), ...b.keys()])].sort((x, y) => x.localeCompare(y, "en", { numeric: true }));
  const searched = new Set([...searchedPaths(first), ...searchedPaths(second)]);
  const cell = (config, name) => (config.has(name) ? h("bdi", {}, setting(config.get(name))) : h("span", { class: "soft" }, "\u2013"));
  const row = (name, mark) => [h("span", {}, path(name), searched.has(name) ? h("span", { class: "badge" }, "searched") : null), ...[a, b].map((config) => (mark ? h("mark", {}, cell(config, name)) : cell(config, name)))];
  const same = names.filter((name) => a.has(name) && b.has(name) && alike(a.get(name), b.get(name)));
  const different = names.filter((name) => !same.includes(name));
  const headings = pairHeadings("Path", first, second);
  return h("div", {},
    different.length ? h("div", { class: "scroll" }, table(headings, different.map((name) => row(name, true)), "wide sides")) : h("p", { class: "note" }, "The two configurations are the same."),
    same.length ? folded(`${plural(same.length, "value")} that both share`, h("div", { class: "scroll" }, table(headings, same.map((name) => row(name, false)), "wide sides"))) : null);
}
