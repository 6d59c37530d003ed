// Failures by cause, the table of all trials, the versions.

const LINKS = 30; // trials of one cause that are named, and causes of a table
const CAUSES = 50;

function trialLinks(trials) {
  const links = trials.slice(0, LINKS).map((trial, i) => [i ? ", " : "", trialLink(trial)]);
  return h("span", {}, links, trials.length > LINKS ? ` and ${count(trials.length - LINKS)} more` : null);
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
  const rows = groups.slice(0, CAUSES).map((group) => [stateWord(group.state), cause(group.reason), count(group.trials.length), trialLinks(group.trials)]);
  const left = groups.slice(CAUSES).reduce((sum, group) => sum + group.trials.length, 0);
  return h("div", { class: "scroll" }, table(headings, rows, "wide"), left ? h("p", { class: "note" }, `And ${plural(left, "trial")} with other causes: sort all trials by state.`) : null);
}

function cause(reason) {
  const lines = reason.trim().split("\n");
  if (lines.length === 1 && reason.length <= 200) return h("bdi", {}, reason);
  const summary = lines[0].startsWith("Traceback") ? lines[lines.length - 1] : lines[0];
  return folded(h("bdi", {}, shorten(summary, 160)), h("pre", { tabindex: 0 }, reason));
}

function drawFailures(host) {
  const failed = groupByCause(["failed", "diverged", "infeasible"]);
  const pruned = groupByCause(["pruned"]);
  const n = pruned.reduce((sum, group) => sum + group.trials.length, 0);
  host.replaceChildren(...[
    failed.length ? causeTable(failed) : h("p", {}, "None: no trial failed or diverged, and all could be built."),
    n ? folded(`${plural(n, "trial")} ended early by the pruner`, causeTable(pruned)) : null,
  ].filter(Boolean));
}

// ---- all trials, a page of the table at a time

const ROWS = 100;
const order = { by: 0, down: false, page: 0, state: "" };

function trialColumns() {
  const seconds = (trial) => trial.ended - trial.started;
  const perEpoch = (trial) => trial.pace && trial.pace.median;
  return [
    { title: "No.", num: true, of: (trial) => trial.number, show: (trial) => trialLink(trial) },
    { title: "Name", of: (trial) => trial.name, show: (trial) => named(trial.name, 60) },
    { title: "State", of: (trial) => trial.state, show: (trial) => stateWord(trial.state) },
    { title: "Score", num: true, of: (trial) => trial.value, show: (trial) => score(trial.value) },
    { title: "Epochs", num: true, of: (trial) => trial.epochs },
    { title: "Time", num: true, of: seconds, show: (trial) => duration(seconds(trial)) },
    { title: "Per epoch", num: true, of: perEpoch, show: (trial) => duration(perEpoch(trial)) },
    { title: "Size", num: true, of: (trial) => trial.parameters, show: (trial) => size(trial.parameters) },
    ...SPACE.map((one) => ({
      title: shortName(one.path), arm: (arms(one.path).pop() || {}).arm, num: one.kind !== "choice" || one.choices.every((value) => typeof value === "number"),
      path: one.path, of: (trial) => trial.params[one.path], show: (trial) => (one.path in trial.params ? shorten(setting(trial.params[one.path]), 60) : "\u2013"),
    })),
  ];
}

function compare(a, b) {
  const missing = (value) => value === undefined || value === null;
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const sign = order.down ? -1 : 1;
  return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
}

const tableTrials = () => TRIALS.filter((trial) => (view.kept === null || view.kept.has(trial.number)) && (!order.state || trial.state === order.state));

function drawTrials(host) {
  if (!TRIALS.length) return empty(host, "No trial has started.");
  const columns = trialColumns();
  const { of } = columns[order.by];
  const sorted = tableTrials().map((trial) => [of(trial), trial]).sort((a, b) => compare(a[0], b[0]) || a[1].number - b[1].number);
  const pages = Math.max(1, Math.ceil(sorted.length / ROWS));
  order.page = Math.min(Math.max(order.page, 0), pages - 1);
  const shown = sorted.slice(order.page * ROWS, (order.page + 1) * ROWS).map((pair) => pair[1]);
  const head = h("tr", {}, columns.map((column, i) => sortHeading(host, column, i)));
  const body = shown.map((trial) => trialRow(trial, columns));
  const box = h("div", { class: shown.length > 25 ? "scroll tall" : "scroll", tabindex: 0, role: "region", "aria-label": "All trials" },
    h("table", { class: "sortable" }, h("thead", {}, head), h("tbody", {}, body)));
  host.replaceChildren(stateChoice(host), ...(pages > 1 ? [pager(host, sorted.length, pages)] : []), box);
  host.dataset.kept = keptKey();
  return markRows();
}

const keptKey = () => (view.kept === null ? "all" : [...view.kept].join(" "));

function stateChoice(host) {
  const states = countStates();
  const pick = (state) => { Object.assign(order, { state, page: 0 }); drawTrials(host); };
  return h("div", { class: "controls", role: "group", "aria-label": "Which trials" }, states.length < 2 ? [] : [["", TRIALS.length], ...states].map(([state, n]) => h(
    "button", { type: "button", "aria-pressed": String(order.state === state), onclick: () => pick(state) }, `${state || "all"} (${count(n)})`)));
}

function pager(host, total, pages) {
  const go = (page) => { order.page = page; drawTrials(host); };
  const button = (text, page, off) => h("button", { type: "button", disabled: off, onclick: () => go(page) }, text);
  const first = order.page * ROWS;
  return h("div", { class: "controls pager" }, button("First", 0, order.page === 0), button("Previous", order.page - 1, order.page === 0),
    h("span", {}, `${count(first + 1)} to ${count(Math.min(first + ROWS, total))} of ${count(total)}`),
    button("Next", order.page + 1, order.page === pages - 1), button("Last", pages - 1, order.page === pages - 1));
}

function trialRow(trial, columns) {
  const cells = columns.map((column) => h("td", { class: column.num ? "num" : null }, column.show ? column.show(trial) : column.of(trial)));
  const open = (event) => { if (!event.target.closest("a")) openTrial(trial.number, event); };
  return h("tr", { class: trial.number === BEST ? "best" : null, "data-trial": trial.number, onclick: open }, cells);
}

// After every change of view: the marked row, and another table where the brushes keep other trials.
function markRows() {
  const host = document.querySelector("[data-draw=trials]");
  if (host.dataset.kept !== undefined && host.dataset.kept !== keptKey()) return drawTrials(host);
  for (const row of host.querySelectorAll("tr[data-trial]")) row.classList.toggle("sel", Number(row.dataset.trial) === view.selected);
  return undefined;
}

function sortHeading(host, column, i) {
  const sorted = order.by === i ? (order.down ? "descending" : "ascending") : null;
  const sort = () => {
    order.down = order.by === i ? !order.down : column.title === "Score";
    Object.assign(order, { by: i, page: 0 });
    drawTrials(host);
    host.querySelectorAll("thead button")[i].focus();
  };
  return h("th", { scope: "col", "aria-sort": sorted, class: column.num ? "num" : null }, h("button", { type: "button", onclick: sort, title: column.path && shorten(column.path, 500) },
    column.title, column.arm ? h("small", {}, `if ${shorten(column.arm, 40)}`) : null));
}

function drawVersions() {
  const versions = Object.entries(REPORT.versions).map(([name, version]) => `${name} ${version}`).join(" \u00b7 ");
  document.getElementById("versions").textContent = versions || "No versions were recorded.";
}
