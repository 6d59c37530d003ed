// Failures by cause, the table of all trials, the versions.

function trialButtons(trials) {
  return h("span", {}, trials.map((trial, i) => [
    i ? ", " : "", h("button", { type: "button", class: "plain", title: trial.name, onclick: () => select(trial.number) }, trial.number),
  ]));
}

function groupByCause(states) {
  const groups = new Map();
  for (const trial of TRIALS.filter((one) => states.includes(one.state))) {
    const reason = trial.reason || "no reason recorded";
    const key = trial.state + "\n" + reason;
    if (!groups.has(key)) groups.set(key, { state: trial.state, reason, trials: [] });
    groups.get(key).trials.push(trial);
  }
  return [...groups.values()].sort((a, b) => b.trials.length - a.trials.length);
}

function causeTable(groups) {
  const headings = [{ title: "State" }, { title: "Cause" }, { title: "Count", num: true }, { title: "Trials" }];
  const rows = groups.map((group) => [stateWord(group.state), cause(group.reason), count(group.trials.length), trialButtons(group.trials)]);
  return h("div", { class: "scroll" }, table(headings, rows, "wide"));
}

function cause(reason) {
  const lines = reason.trim().split("\n");
  if (lines.length === 1 && reason.length <= 200) return reason;
  const summary = lines[0].startsWith("Traceback") ? lines[lines.length - 1] : lines[0];
  return folded(shorten(summary, 160), h("pre", { tabindex: 0 }, reason));
}

function drawFailures(host) {
  const failed = groupByCause(["failed", "diverged"]);
  const pruned = groupByCause(["pruned"]);
  const n = pruned.reduce((sum, group) => sum + group.trials.length, 0);
  host.replaceChildren(...[
    failed.length ? causeTable(failed) : h("p", {}, "None: no trial failed or diverged."),
    n ? folded(`${plural(n, "trial")} ended early by the pruner`, causeTable(pruned)) : null,
  ].filter(Boolean));
}

// ---- all trials

const order = { by: 0, down: false };

function trialColumns() {
  const seconds = (trial) => trial.ended - trial.started;
  const perEpoch = (trial) => median(trial.epochs.seconds);
  const epochs = (trial) => trial.epochs.epoch.length;
  return [
    { title: "No.", num: true, of: (trial) => trial.number, show: (trial) => pickButton(trial) },
    { title: "Name", of: (trial) => trial.name },
    { title: "State", of: (trial) => trial.state, show: (trial) => stateWord(trial.state) },
    { title: "Score", num: true, of: (trial) => trial.value, show: (trial) => score(trial.value) },
    { title: "Epochs", num: true, of: epochs },
    { title: "Time", num: true, of: seconds, show: (trial) => duration(seconds(trial)) },
    { title: "Per epoch", num: true, of: perEpoch, show: (trial) => duration(perEpoch(trial)) },
    { title: "Size", num: true, of: (trial) => trial.parameters, show: (trial) => size(trial.parameters) },
    ...REPORT.space.map((one) => ({
      title: shortName(one.path), arm: (arms(one.path).pop() || {}).arm, num: one.kind !== "choice" || one.choices.every((value) => typeof value === "number"),
      path: one.path, of: (trial) => trial.params[one.path], show: (trial) => (one.path in trial.params ? setting(trial.params[one.path]) : "\u2013"),
    })),
  ];
}

const pickButton = (trial) =>
  h("button", { type: "button", class: "plain", "aria-label": `Select trial ${trial.number}`, onclick: (event) => { event.stopPropagation(); select(trial.number); } }, trial.number);

function compare(a, b) {
  const missing = (value) => value === undefined || value === null;
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const sign = order.down ? -1 : 1;
  return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
}

function drawTrials(host) {
  if (!TRIALS.length) return empty(host, "No trial has started.");
  const columns = trialColumns();
  const rows = [...TRIALS].sort((a, b) => compare(columns[order.by].of(a), columns[order.by].of(b)) || a.number - b.number);
  marks = marks.filter((mark) => !host.contains(mark.node));
  const head = h("tr", {}, columns.map((column, i) => sortHeading(host, column, i)));
  const body = rows.map((trial) => trialRow(trial, columns));
  const box = h("div", { class: TRIALS.length > 25 ? "scroll tall" : "scroll", tabindex: 0, role: "region", "aria-label": "All trials" },
    h("table", { class: "sortable" }, h("thead", {}, head), h("tbody", {}, body)));
  host.replaceChildren(box);
  return undefined;
}

function trialRow(trial, columns) {
  const cells = columns.map((column) => h("td", { class: column.num ? "num" : null }, column.show ? column.show(trial) : column.of(trial)));
  const row = h("tr", { class: trial.number === BEST ? "best" : null, onclick: () => select(trial.number) }, cells);
  return link(row, trial.number);
}

function sortHeading(host, column, i) {
  const sorted = order.by === i ? (order.down ? "descending" : "ascending") : null;
  const sort = () => {
    order.down = order.by === i ? !order.down : column.title === "Score";
    order.by = i;
    drawTrials(host);
    showView();
    host.querySelectorAll("thead button")[i].focus();
  };
  return h("th", { scope: "col", "aria-sort": sorted, class: column.num ? "num" : null }, h("button", { type: "button", onclick: sort, title: column.path },
    column.title, column.arm ? h("small", {}, `if ${column.arm}`) : null));
}

function drawVersions() {
  const versions = Object.entries(REPORT.versions).map(([name, version]) => `${name} ${version}`).join(" \u00b7 ");
  document.getElementById("versions").textContent = versions || "No versions were recorded.";
}
