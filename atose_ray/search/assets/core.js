"use strict";
// What every part of the page uses: the data, making elements, writing numbers, the trials, the marked one, the tooltip.

const REPORT = JSON.parse(document.getElementById("data").textContent);
const STATES = ["complete", "pruned", "diverged", "failed", "running"];
const SHAPES = {
  complete: "M0-4.5A4.5 4.5 0 1 1 0 4.5A4.5 4.5 0 1 1 0-4.5Z",
  pruned: "M-3.7-3.7H3.7V3.7H-3.7Z",
  diverged: "M0-5L5 4H-5Z",
  failed: "M-4.5-2.5L-2.5-4.5L0-2L2.5-4.5L4.5-2.5L2 0L4.5 2.5L2.5 4.5L0 2L-2.5 4.5L-4.5 2.5L-2 0Z",
  running: "M0-5.5L5 0L0 5.5L-5 0Z",
};

// ---- elements: text only ever arrives as a text node, so data cannot become markup

function element(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

const h = (tag, attributes, ...children) => element(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  element(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function table(headings, rows, className) {
  const cell = (tag, value, heading) => h(tag, { class: heading.num ? "num" : heading.className }, value);
  const head = h("tr", {}, headings.map((heading) => element(cell("th", heading.title, heading), { scope: "col" }, [])));
  const body = rows.map((row) => h("tr", {}, row.map((value, i) => cell("td", value, headings[i]))));
  return h("table", { class: className || null }, h("thead", {}, head), h("tbody", {}, body));
}

// A name from outside: as long as a line of it makes sense, and right-to-left letters turn nothing around them.
const named = (text, length) => h("bdi", { title: text.length > (length || 120) ? shorten(text, 2000) : null }, shorten(text, length || 120));

// A long path may break after a dot or a bracket, not in a word.
const path = (text) => h("bdi", { class: "path" }, shorten(text, 500).split(/(?<=[.\]/])/).flatMap((part, i) => (i ? [h("wbr"), part] : [part])));
const folded = (title, ...content) => h("details", {}, h("summary", {}, title), content);

// ---- numbers

const known = (value) => typeof value === "number" && Number.isFinite(value);
const count = (value) => value.toLocaleString("en-US");
const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many || one + "s"}`;
const percent = (value) => (known(value) ? (100 * value).toFixed(value && value < 0.0995 ? 1 : 0) + " %" : "\u2013");
const score = (value) => (known(value) ? value.toFixed(4) : "\u2013");
const signed = (value) => (known(value) ? (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(4) : "\u2013");

function number(value) {
  if (!known(value)) return "\u2013";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return count(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

function setting(value) {
  if (typeof value === "number") return number(value);
  return shorten(typeof value === "string" ? value : JSON.stringify(value), 300);
}

function size(parameters) {
  if (!known(parameters)) return "\u2013";
  if (parameters >= 1e6) return (parameters / 1e6).toFixed(2) + " M";
  return parameters >= 1e4 ? (parameters / 1e3).toFixed(0) + " k" : count(parameters);
}

function duration(seconds) {
  if (!known(seconds)) return "\u2013";
  if (seconds < 10) return seconds.toFixed(seconds < 1 ? 2 : 1) + " s";
  if (seconds < 60) return Math.round(seconds) + " s";
  const minutes = Math.round(seconds / 60);
  if (seconds < 600) return `${Math.floor(Math.round(seconds) / 60)} min ${String(Math.round(seconds) % 60).padStart(2, "0")} s`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function median(values) {
  const sorted = values.filter(known).sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (!sorted.length) return null;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const shorten = (text, length) => (text.length > length ? text.slice(0, length - 1).trimEnd() + "\u2026" : text);

// ---- parameters: "method[joint_embedding].objective[info_nce].temperature" reads "temperature", "if info_nce"

const arms = (text) => [...text.matchAll(/([^.\[\]]+)\[([^\]]*)\]/g)].map((found) => ({ where: found[1], arm: found[2] }));

function shortName(text) {
  const parts = text.replace(/\[[^\]]*\]/g, "").split(".");
  const last = parts[parts.length - 1];
  const alike = REPORT.space.filter((one) => one.path.replace(/\[[^\]]*\]/g, "").split(".").pop() === last).length;
  return shorten(parts.length > 1 && (last === "kind" || alike > 1) ? parts.slice(-2).join(" ") : last, 60);
}

// ---- trials

const TRIALS = REPORT.trials;
const BEST = REPORT.best ? REPORT.best.number : null;
const METRIC = REPORT.study.metric;
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

// ---- the tooltip

function trialTip(trial, details) {
  const reason = trial.reason ? `: ${shorten(trial.reason.split("\n")[0], 90)}` : "";
  const lines = [`${trial.state}${reason}`, `${METRIC} ${score(trial.value)}`, ...(details || [])];
  return [h("b", {}, titleOf(trial, 80)), ...lines.map((line) => h("div", {}, line))];
}

function showTip(event, content) {
  const tip = document.getElementById("tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const room = 14;
  const left = event.clientX + room + tip.offsetWidth > innerWidth ? event.clientX - room - tip.offsetWidth : event.clientX + room;
  const top = event.clientY + room + tip.offsetHeight > innerHeight ? event.clientY - room - tip.offsetHeight : event.clientY + room;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}
