// The head of the page, the best trial, what was searched and on which data.

// What a score says.
const MEANINGS = {
  "pr_auc_macro": "average precision (area under the precision-recall curve) of each tag over all clips, then the mean over the tags that have a positive clip",
  "roc_auc_macro": "area under the ROC curve of each tag over all clips, then the mean over the tags",
  "pr_auc_micro": "average precision over all (clip, tag) pairs pooled into one list",
  "accuracy": "share of clips whose highest-scored tag is the right one",
  "f1_macro_at_0.5": "F1 of each tag with the score cut at 0.5, then the mean over the tags",
  "paired_cosine": "mean cosine of a clip's audio vector and the vector of its own tags (alignment)",
  "unpaired_cosine": "mean cosine of a clip's audio vector and the tag vector of a clip with other tags",
  "audio_uniformity": "log mean exp(-2 d²) over pairs of audio vectors: 0 is one point, lower is more spread",
  "tag_uniformity": "log mean exp(-2 d²) over pairs of tag vectors: 0 is one point, lower is more spread",
};

const probe = () => REPORT.study.config.base.probe || {};
const meaning = (name) => {
  if (!name.startsWith("probe_")) return MEANINGS[name];
  const kind = probe().classifier || "linear";
  return `of a ${kind} classifier on the embeddings of ${probe().dataset}: ${MEANINGS[name.slice("probe_".length)]}`;
};

const devices = () => REPORT.devices.map((one) => shorten(one.device, 90));
const tested = () => (REPORT.best ? REPORT.best.metrics.test || {} : {});
const chance = () => (REPORT.best ? REPORT.best.metrics.test_prevalence_mean : null);
const bestValid = () => {
  const chosen = REPORT.best && (REPORT.best.metrics.valid || {})[METRIC];
  return known(chosen) ? chosen : null;
};

const highest = () => TRIALS.reduce((best, { value }) => (known(value) && (best === null || value > best) ? value : best), null);

function drawHead() {
  document.getElementById("sentence").textContent = sentence();
  const tiles = [
    REPORT.best ? ["Best on validation", score(bestValid()), `${METRIC}, what the search maximised`]
      : ["Best so far on validation", score(highest()), `${METRIC}, what the search maximises`],
    ["The same model on test", score(tested()[METRIC]), REPORT.best ? testNote() : "not scored"],
    METRIC.startsWith("probe_") ? ["Measured on", shorten(String(probe().dataset), 40), "the probe's set: a classifier is fitted on the embeddings of its train split"]
      : ["Chance level", score(chance()), "mean tag prevalence on test: the average precision of guessing"],
    ["Trials", SEARCH.trials > TRIALS.length ? `${count(TRIALS.length)} of ${count(SEARCH.trials)}` : count(TRIALS.length), countStates().map(([state, n]) => `${count(n)} ${state}`).join(", ")],
    ["Wall time", duration(REPORT.study.wall_seconds), startedAt()],
  ];
  const words = devices().join(", ") || "\u2013";
  document.getElementById("tiles").replaceChildren(
    ...tiles.map(([name, value, note]) => h("div", {}, h("dt", {}, name), h("dd", {}, h("span", { class: "nowrap" }, value), h("small", {}, note)))),
    h("div", {}, h("dt", {}, "Devices"), h("dd", { class: "words" }, shorten(words, 90))),
  );
  const titles = [...document.querySelectorAll("main > section:not([hidden])")].map((one) => [one.id, one.querySelector("h2").textContent]);
  document.getElementById("contents").replaceChildren(...titles.map(([id, text]) => h("a", { href: "#" + id }, text)));
  for (const node of document.querySelectorAll("code.metric")) node.textContent = METRIC;
}

const scorings = () => (REPORT.best ? REPORT.best.scorings : []);
const interval = (name) => ((REPORT.best && REPORT.best.metrics.test_intervals) || {})[name] || null;
const uncounted = () => scorings().some((one) => !known(one.time)); // the first of them is of a version that kept no count
const timesScored = () => `scored ${uncounted() ? "at least " : ""}${scorings().length === 1 ? "once" : `${count(scorings().length)} times`}`;

function testNote() {
  if (!REPORT.best) return "not scored";
  const bounds = interval(METRIC);
  return [METRIC, bounds && `95 % ${bounds.map((end) => end.toFixed(3)).join(" to ")}`, scorings().length && timesScored()].filter(Boolean).join(", ");
}

function startedAt() {
  if (!known(REPORT.study.started)) return "no trial has started";
  return "from " + new Date(REPORT.study.started * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC";
}

function sentence() {
  if (!TRIALS.length) return `A search for the highest validation ${METRIC}. No trial has started yet.`;
  const states = countStates().map(([state, n]) => `${count(n)} ${state}`).join(", ");
  const head = `${plural(TRIALS.length, "trial")} (${states}) searched for the highest validation ${METRIC}`;
  const running = TRIALS.some((trial) => trial.state === "running");
  const tail = ` It ${running ? "has taken" : "took"} ${duration(REPORT.study.wall_seconds)}${devices().length ? " on " + shorten(devices().join(", "), 80) : ""}.` +
    ` All scores are of the protocol "${REPORT.protocol}": the mean over a clip's crops, every clip once.`;
  if (!REPORT.best) return `${head}. No model has been chosen.${tail}`;
  const test = known(tested()[METRIC]) ? ` and ${score(tested()[METRIC])} on test` : "";
  const level = known(chance()) && METRIC.startsWith("pr_auc") ? `, where guessing scores ${score(chance())}` : "";
  return `${head}. The best, trial ${BEST}, reached ${score(bestValid())} on validation${test}${level}.${tail}`;
}

// ---- best

function drawBest(host) {
  if (!REPORT.best) return host.replaceChildren(h("p", { class: "warning" }, whyNoBest()));
  const trial = byNumber.get(BEST);
  const metrics = REPORT.best.metrics;
  const from = [
    known(metrics.epoch) && `epoch ${metrics.epoch}`, metrics.stage && `stage ${metrics.stage}`,
    metrics.protocol && `protocol ${metrics.protocol}`, trial && `${size(trial.parameters)} parameters`,
    trial && `signature ${trial.signature}`,
  ].filter(Boolean).join(", ");
  host.replaceChildren(
    h("p", {}, h("strong", {}, trial ? trialLink(trial, titleOf(trial)) : `trial ${BEST}`), from && h("span", { class: "soft" }, ` \u00b7 ${from}`)),
    h("div", { class: "columns" }, bestParameters(trial), bestMetrics(metrics)),
    h("h3", {}, "The command that repeats it"), rerunCommand(),
    folded("The whole configuration of this trial", h("pre", { tabindex: 0 }, JSON.stringify(REPORT.best.config, null, 2))),
  );
}

function whyNoBest() {
  const scored = TRIALS.filter((trial) => known(trial.value)).sort((a, b) => b.value - a.value)[0];
  if (!TRIALS.length) return "There is no best trial: no trial has started.";
  const states = countStates().map(([state, n]) => `${n} ${state}`).join(", ");
  if (!scored) return `There is no best trial: none of the ${plural(TRIALS.length, "trial")} (${states}) finished an epoch, so nothing was scored.`;
  const complete = TRIALS.some((trial) => trial.state === "complete");
  const why = complete ? "the study has not chosen one of its complete trials" : "no trial is complete";
  return `There is no best trial yet, and test was not scored: ${why} (${states}). ` +
    `The highest validation ${METRIC} so far is ${score(scored.value)}, by trial ${label(scored)}.`;
}

function bestParameters(trial) {
  const rows = Object.entries(trial ? trial.params : {}).map(([name, value]) => [path(name), setting(value)]);
  if (!rows.length) return h("p", { class: "note" }, "Nothing was searched: the base configuration is the model.");
  return table([{ title: "Parameter" }, { title: "Value", num: true }], rows, "wide sides");
}

function bestMetrics(metrics) {
  const bounded = Object.keys(metrics.test_intervals || {}).length > 0;
  const names = [...new Set([METRIC, ...Object.keys(metrics.valid || {}), ...Object.keys(metrics.test || {})])];
  const rows = names.map((name) => [
    h("span", {}, h("code", {}, name), h("br"), h("span", { class: "meaning" }, meaning(name) || "")),
    score((metrics.valid || {})[name]), score((metrics.test || {})[name]), ...(bounded ? [h("span", { class: "nowrap" }, interval(name) ? interval(name).map((end) => end.toFixed(3)).join(" to ") : "\u2013")] : []),
  ]);
  const headings = [{ title: "Metric" }, { title: "Validation", num: true }, { title: "Test", num: true }, ...(bounded ? [{ title: "95 % of test", num: true }] : [])];
  return h("div", {}, table(headings, rows, "wide"), scoringsNote(),
    bounded && h("p", { class: "note" }, metrics.folds
      ? `Means over ${count(metrics.folds.length)} folds [${REPORT.protocol}], each tested once with a model of its own; the 95 % intervals are of these means (Student). The model that was kept, the tables by tag and the mistakes are of fold ${metrics.fold}.`
      : `95 % intervals of the luck of the test clips [${REPORT.protocol}]: ${interval("accuracy") || interval("probe_accuracy") ? "accuracy by Wilson's formula, the others" : "made"} by resampling clips (percentile bootstrap). The luck of the seed is not in them.`),
    known(chance()) && h("p", { class: "note" }, `Mean tag prevalence on test: ${score(chance())}, the average precision of guessing.`),
    known(REPORT.best.counts.clips) && h("p", { class: "note" }, `Test: ${count(REPORT.best.counts.clips)} clips, ` +
      `${count(REPORT.best.counts.tags_scored)} of ${count(REPORT.best.counts.tags_total)} tags scored${REPORT.best.counts.tags_scored < REPORT.best.counts.tags_total ? " (the others have no positive there)" : ""}.`));
}

// How often the study looked at its test split: its own winners, and what other commands trained and tested.
function scoringsNote() {
  const found = scorings();
  if (!found.length) return null;
  const more = [];
  if (REPORT.promotion && REPORT.promotion.test) more.push(`promotion scored it with ${plural(REPORT.promotion.test.values.length, "other training")}`);
  if (REPORT.crossvalidation) more.push("cross-validation tested a training of its own on each fold");
  const besides = more.length ? ` Besides, ${more.join(", and ")}.` : "";
  const when = ({ time }) => (known(time) ? `${new Date(time * 1000).toISOString().slice(0, 16).replace("T", " ")} UTC` : "not recorded");
  const headings = [{ title: "When" }, { title: "Trial", num: true }, { title: "Test score", num: true }];
  const rows = found.map((one) => [when(one), byNumber.has(one.number) ? trialLink(byNumber.get(one.number)) : String(one.number), `${one.metric} ${score(one.value)} [${one.protocol}]`]);
  const words = `The test split was ${timesScored()} by this study${uncounted() ? " (an earlier version kept no count)" : ""}` +
    (found.length === 1 ? "." : ", once for each winner: the more often, the less the last score is a test.");
  return h("div", { class: "scorings" }, h("p", { class: "note" }, words + besides), found.length > 1 ? table(headings, rows) : null);
}

function rerunCommand() {
  const command = REPORT.study.rerun;
  return command ? commandLine(command) : h("p", { class: "note" }, "No command was recorded.");
}

const commandOf = (verb, more) => ["python -m", `atose_ray.${verb}`, REPORT.study.arguments, more].filter(Boolean).join(" ");

function commandLine(command) {
  const text = h("pre", { tabindex: 0 }, command);
  const button = h("button", { type: "button", onclick: () => copy(command, text, button) }, "Copy");
  return h("div", { class: "command" }, text, button);
}

async function copy(command, node, button) {
  try {
    await navigator.clipboard.writeText(command);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(node);
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

// ---- what was searched

function drawSpace(host) {
  const headings = [
    { title: "Parameter" }, { title: "Values" }, { title: "Scale" }, { title: "Only where" }, { title: "Trials", num: true },
  ];
  const rows = SPACE.map((one) => [
    path(one.path), values(one), scaleName(one),
    arms(one.path).map(({ where, arm }) => `${where} is ${arm}`).join(", ") || "\u2013", count(one.trials),
  ]);
  host.replaceChildren(
    rows.length ? h("div", { class: "scroll" }, table(headings, rows, "wide")) : h("p", { class: "note" }, "No trial has drawn a parameter yet."),
    ...[
      raw("Base configuration: what every trial shared", CONFIGURED_BASE),
      raw("Search settings", SEARCH),
      raw("The space as it was configured", CONFIGURED_SPACE),
    ].filter(Boolean),
  );
}

const values = (one) => (one.kind === "choice" ? shorten(one.choices.map(setting).join(", "), 600) : `${number(one.low)} to ${number(one.high)}`);

function scaleName(one) {
  if (one.kind === "choice") return `choice of ${one.choices.length}`;
  const step = one.step && !(one.kind === "integer" && one.step === 1) ? `, step ${number(one.step)}` : "";
  return `${one.kind}, ${one.log ? "log" : "linear"}${step}`;
}

function raw(title, content) {
  const none = !content || (typeof content === "object" && !Object.keys(content).length);
  return none ? null : folded(title, h("pre", { tabindex: 0 }, JSON.stringify(content, null, 2)));
}

function drawData(host) {
  const data = REPORT.data;
  const clips = Object.entries(data.clips).map(([split, n]) => `${split} ${count(n)}`).join(", ");
  const facts = [
    ["Tags", `${count(data.tags.length)}, ${data.exclusive ? "exactly one per clip" : "any number per clip"}`],
    ["Clips per split", clips || "not recorded"],
    ["Input", data.input],
    ["Longest clip", `${number(data.clip_seconds)} s`],
    ["Skipped files", data.skipped.length ? count(data.skipped.length) : "none"],
  ];
  host.replaceChildren(
    h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    ...[skippedFiles(data.skipped), tagCounts(data)].filter(Boolean),
  );
}

function skippedFiles(skipped) {
  if (!skipped.length) return null;
  const rows = skipped.map(([file, reason]) => [path(file), named(reason, 500)]);
  return folded(`Skipped files (${count(skipped.length)}), with the reason`,
    h("div", { class: "tall", tabindex: 0 }, table([{ title: "File" }, { title: "Reason" }], rows, "wide")));
}

function tagCounts(data) {
  const splits = Object.keys(data.tag_counts).filter((split) => data.tag_counts[split].length);
  if (!splits.length) return null;
  const rows = data.tags.map((tag, i) => [named(tag), ...splits.map((split) => count(data.tag_counts[split][i]))]);
  const headings = [{ title: "Tag" }, ...splits.map((split) => ({ title: split, num: true }))];
  return folded("Clips per tag", h("div", { class: "tall", tabindex: 0 }, table(headings, rows)));
}
