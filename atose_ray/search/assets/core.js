// What every part of the report uses: the trials, their parameters and curves, the marked one, its tooltip.

const STATES = ["complete", "pruned", "diverged", "failed", "infeasible", "running"];
const SHAPES = {
  complete: "M0-4.5A4.5 4.5 0 1 1 0 4.5A4.5 4.5 0 1 1 0-4.5Z",
  pruned: "M-3.7-3.7H3.7V3.7H-3.7Z",
  diverged: "M0-5L5 4H-5Z",
  failed: "M-4.5-2.5L-2.5-4.5L0-2L2.5-4.5L4.5-2.5L2 0L4.5 2.5L2.5 4.5L0 2L-2.5 4.5L-4.5 2.5L-2 0Z",
  infeasible: "M-4.5-1.2H4.5V1.2H-4.5Z",
  running: "M0-5.5L5 0L0 5.5L-5 0Z",
};

// ---- parameters: "method[joint_embedding].objective[info_nce].temperature" reads "temperature", "if info_nce"

const arms = (text) => [...text.matchAll(/([^.\[\]]+)\[([^\]]*)\]/g)].map((found) => ({ where: found[1], arm: found[2] }));

function shortName(text) {
  const parts = text.replace(/\[[^\]]*\]/g, "").split(".");
  const last = parts[parts.length - 1];
  const alike = SPACE.filter((one) => one.path.replace(/\[[^\]]*\]/g, "").split(".").pop() === last).length;
  return shorten(parts.length > 1 && (last === "kind" || alike > 1) ? parts.slice(-2).join(" ") : last, 60);
}

// A long path may break after a dot or a bracket, not in a word.
const path = (text) => h("bdi", { class: "path" }, shorten(text, 500).split(/(?<=[.\]/])/).flatMap((part, i) => (i ? [h("wbr"), part] : [part])));

// ---- trials

const TRIALS = REPORT.trials;
const BEST = REPORT.best ? REPORT.best.number : null;
const METRIC = REPORT.study.metric;
const { base: CONFIGURED_BASE, space: CONFIGURED_SPACE, search: SEARCH = {} } = REPORT.study.config;
const byNumber = new Map(TRIALS.map((trial) => [trial.number, trial]));
const stateColor = (state) => `var(--${state})`;
const label = (trial) => (trial.name ? `${trial.number}: ${shorten(trial.name, 80)}` : `trial ${trial.number}`);
const countStates = () => STATES.map((state) => [state, TRIALS.filter((trial) => trial.state === state).length]).filter((pair) => pair[1]);
const titleOf = (trial, length) => h("span", {}, trial.name ? [`${trial.number}: `, named(trial.name, length)] : `trial ${trial.number}`);
const shape = (state, attributes) => s("path", { d: SHAPES[state], fill: stateColor(state), ...attributes });
const trialHash = (trialNumber) => `#trial-${trialNumber}`;
const trialLink = (trial, text) => h("a", { href: trialHash(trial.number), title: label(trial) }, text === undefined ? trial.number : text);

function stateIcon(state) {
  return s("svg", { width: 12, height: 12, viewBox: "-6 -6 12 12", "aria-hidden": "true" }, shape(state));
}

const stateWord = (state) => h("span", { class: "state" }, stateIcon(state), state);

function stateLegend(host) {
  host.replaceChildren(...countStates().map(([state, n]) => h("span", {}, stateIcon(state), `${state} (${count(n)})`)));
}

// ---- the space: every parameter with its range, as the last trial that has it was given it; those of one part together

const SPACE = spaceOf([...new Set(TRIALS.flatMap((trial) => Object.keys(trial.params)))]);

function spaceOf(paths) {
  const part = (text) => text.split(/[.[]/)[0];
  const parts = [...new Set(paths.map(part))];
  const found = paths.map((one) => {
    const tried = TRIALS.filter((trial) => one in trial.params).map((trial) => trial.params[one]);
    return { path: one, trials: tried.length, ...rangeOf(REPORT.ranges[one], tried) };
  });
  return found.sort((a, b) => parts.indexOf(part(a.path)) - parts.indexOf(part(b.path)));
}

// Optuna's range, or, where it is not known, a choice of what was tried.
function rangeOf(known, tried) {
  const { name, attributes: of } = known || {};
  if (of && Array.isArray(of.choices)) return { kind: "choice", choices: of.choices };
  if (of && "low" in of) return { kind: name === "IntDistribution" ? "integer" : "number", low: of.low, high: of.high, log: of.log, step: of.step };
  return { kind: "choice", choices: [...new Map(tried.map((value) => [JSON.stringify(value), value])).values()] };
}

// ---- curves arrive packed: [lowest, highest, base64 of 16 bits a value], 65535 is a gap

const unpacked = new Map();

function unpack(packed) {
  if (!packed) return [];
  if (!unpacked.has(packed)) {
    const [low, high, text] = packed;
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const steps = Array.from({ length: bytes.length / 2 }, (_, i) => bytes[2 * i] + 256 * bytes[2 * i + 1]);
    unpacked.set(packed, steps.map((step) => (step === 65535 ? null : low + ((high - low) * step) / 65534)));
  }
  return unpacked.get(packed);
}

const LOSS = "train loss";
const epochsOf = ({ curves }) => (typeof curves.epoch === "number" ? Array.from({ length: curves.epoch }, (_, i) => i + 1) : curves.epoch);
const curveOf = (trial, name) => unpack(name === LOSS ? trial.curves.loss : trial.curves.valid[REPORT.metrics.indexOf(name)]);
const stageAt = (trial, epoch) => trial.stages[trial.bounds.filter(([first]) => first <= epoch).pop()[1]];

// ---- one marked trial and one filter, shown by every plot and the table; a click opens the trial's page

const view = { selected: null, kept: null, pointed: null };

function openTrial(trialNumber, event) {
  if (event && (event.ctrlKey || event.metaKey || event.shiftKey)) return select(trialNumber);
  view.selected = trialNumber;
  location.hash = trialHash(trialNumber);
  return undefined;
}

function select(trialNumber) {
  view.selected = view.selected === trialNumber ? null : trialNumber;
  showView();
}

function keepOnly(numbers) {
  view.kept = numbers;
  showView();
}

function point(trialNumber) {
  if (view.pointed === trialNumber) return;
  view.pointed = trialNumber;
  layers.forEach((one) => one.paintTop());
}

function showView() {
  layers.forEach((one) => one.paint());
  markRows();
  showSelection();
}

function showSelection() {
  const bar = document.getElementById("selection");
  const trial = byNumber.get(view.selected);
  bar.hidden = !trial;
  if (!trial) return;
  const chosen = Object.entries(trial.params).map(([name, value]) => `${shortName(name)} ${setting(value)}`).join(", ");
  const other = BEST !== null && BEST !== trial.number ? BEST : null;
  bar.replaceChildren(
    h("strong", {}, trialLink(trial, titleOf(trial, 80))), stateWord(trial.state), h("span", {}, `${METRIC} ${score(trial.value)}`),
    h("span", { class: "what" }, shorten(chosen, 600)),
    h("a", { href: `#compare-${trial.number}${other === null ? "" : "-" + other}` }, "Compare"),
    h("button", { type: "button", onclick: () => select(trial.number) }, "Clear"),
  );
}

// ---- the tooltip of a trial

function trialTip(trial, details) {
  const reason = trial.reason ? `: ${shorten(trial.reason.split("\n")[0], 90)}` : "";
  const lines = [`${trial.state}${reason}`, `${METRIC} ${score(trial.value)}`, ...(details || [])];
  return [h("b", {}, titleOf(trial, 80)), ...lines.map((line) => h("div", {}, line))];
}
