// The page of one trial: what it was, how it went, what it took, and, where it was scored per tag, what it gets wrong.

const CONFIGS = REPORT.configs;

// path -> value of a trial's config: what most trials share, less what this one lacks, and its own.
function configOf(trial) {
  const lacks = new Set(trial.lacks);
  const own = [...CONFIGS.shared.filter((i) => !lacks.has(i)), ...trial.config].map((i) => CONFIGS.leaves[i]);
  return new Map(own.sort((a, b) => a[0].localeCompare(b[0], "en", { numeric: true })));
}

const baseConfig = new Map((CONFIGS.base || CONFIGS.shared).map((i) => CONFIGS.leaves[i]));
const baseWord = CONFIGS.base ? "base" : "most trials";
const alike = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const searchedPaths = (trial) => new Set(Object.keys(trial.params).map((name) => name.replace(/\[[^\]]*\]/g, "")));

function drawTrialPage(host, trial) {
  const examples = REPORT.examples[trial.number];
  const parts = { course: h("div", {}), curves: h("div", { class: "smalls" }), tags: h("div", {}), folds: h("div", { class: "plot" }) };
  host.replaceChildren(
    pageHead(trial), trialTiles(trial), trial.reason ? h("div", { class: "reason" }, h("h3", {}, "How it ended"), cause(trial.reason)) : "",
    section("Curves", trial.epochs > REPORT.curve_points ? `Over all clips of the validation split, by epoch; thinned to about ${REPORT.curve_points} of ${trial.epochs} epochs.`
      : "Over all clips of the validation split, by epoch. Dashed lines mark where a training stage begins.", parts.curves),
    trial.folds.length ? section("Folds", `Validation ${METRIC} on each fold; the line is their mean.`, parts.folds) : "",
    section("Course", "By the clock of the study. Queued and starting end where the first epoch begins; a gap is a break in which the trial did not train.", parts.course),
    section("Configuration", `What differs from the ${CONFIGS.base ? "base configuration of the study" : "value that most trials share"} is marked; what the search chose says so.`, configTree(trial)),
    section("What it took", "", resourceFacts(trial)),
    trial.notes.length ? section("On its way", "What the run wrote into its log beside its epochs.", noteTable(trial)) : "",
    section("Tags on validation", examples ? `Of ${plural(examples.clip_count, "clip")} of the validation split, with the weights of the best epoch (${examples.identity.epoch}).` : "", parts.tags),
  );
  drawTrialCurves(parts.curves, [trial]);
  if (trial.folds.length) drawTrialFolds(parts.folds, trial);
  drawCourse(parts.course, trial);
  if (examples) drawTagParts(parts.tags, examples, trial);
  else parts.tags.append(notScored(trial));
}

const section = (title, caption, ...content) => h("section", {}, h("h2", {}, title), caption ? h("p", { class: "caption" }, caption) : null, content);

function pageHead(trial) {
  const at = TRIALS.indexOf(trial);
  const step = (other, text) => (other ? h("a", { href: trialHash(other.number) }, text) : h("span", { class: "soft" }, text));
  const other = BEST !== null && BEST !== trial.number ? `#compare-${trial.number}-${BEST}` : `#compare-${trial.number}`;
  return h("header", {},
    h("nav", { "aria-label": "Trials" }, h("a", { href: "#summary" }, "\u2190 the whole search"), step(TRIALS[at - 1], "previous trial"), step(TRIALS[at + 1], "next trial"),
      h("a", { href: other }, BEST !== null && BEST !== trial.number ? "compare with the best" : "compare with another")),
    h("p", { class: "eyebrow" }, trial.number === BEST ? "The chosen trial" : "Trial", ` of ${shorten(REPORT.study.name, 80)}`),
    h("h1", { tabindex: -1 }, titleOf(trial)));
}

function trialTiles(trial) {
  const tiles = [
    ["State", stateWord(trial.state), trial.epochs ? `after ${plural(trial.epochs, "epoch")}` : "no epoch was finished"],
    ["Best on validation", score(trial.value), trial.best_epoch ? `${METRIC}, epoch ${trial.best_epoch}, stage ${stageAt(trial, trial.best_epoch)}` : METRIC],
    ["Place", place(trial), `of ${plural(TRIALS.filter((one) => known(one.value)).length, "trial")} with a score`],
    ["Parameters", size(trial.parameters), ""],
    ["Training", duration(trial.pace && trial.pace.total), trial.pace ? `${duration(trial.pace.median)} an epoch (median)` : ""],
  ];
  return h("dl", { class: "tiles" }, tiles.map(([name, value, note]) => h("div", {}, h("dt", {}, name), h("dd", {}, h("span", { class: "nowrap" }, value), h("small", {}, shorten(note, 90))))));
}

const place = (trial) => (known(trial.value) ? count(1 + TRIALS.filter((one) => known(one.value) && one.value > trial.value).length) : "\u2013");

// ---- curves: one small plot per metric; two trials share it in a comparison

const PAIR = ["complete", "failed"]; // colours of the two; the second is dashed as well

function drawTrialCurves(host, trials) {
  const names = [...REPORT.metrics].sort((a, b) => (b === METRIC) - (a === METRIC)).filter((name) => trials.some((trial) => curveOf(trial, name).some(known)));
  if (!names.length) return host.replaceChildren(h("p", { class: "note" }, "No epoch was finished."));
  const hosts = [...names, LOSS].map((name) => [name, h("div", { class: "plot" })]);
  host.replaceChildren(...hosts.map(([, one]) => one));
  hosts.forEach(([name, one]) => smallCurve(one, trials, name));
  return undefined;
}

function smallCurve(host, trials, name) {
  const title = name === LOSS ? "training loss" : `validation ${name}`;
  const plot = frame(host, { height: 210, label: `${title} by epoch`, margin: { top: 40, right: 12, bottom: 38, left: 50 } });
  const epochs = Math.max(2, ...trials.map((trial) => trial.epochs));
  const x = linear(1, epochs, plot.left + 6, plot.right);
  const y = curveScale(plot, trials.flatMap((trial) => curveOf(trial, name)), name);
  yAxis(plot, y, title);
  xAxis(plot, x, wholeTicks(1, epochs, plot.width / 70), "epoch");
  drawBoundaries(plot, x, stageStarts(trials));
  const points = trials.flatMap((trial, i) => {
    const one = curvePoints(trial, name, x, y);
    const color = trials.length > 1 ? PAIR[i] : trial.state;
    plot.svg.append(s("path", { class: "curve", stroke: `var(--${color})`, "stroke-dasharray": i ? "5 4" : null, d: pointsPath(one.map((at) => [at.x, at.y])) }));
    if (one.length === 1) plot.svg.append(s("circle", { cx: one[0].x, cy: one[0].y, r: 3, fill: `var(--${color})` }));
    const best = name === METRIC && one.find((at) => at.epoch === trial.best_epoch);
    if (best) plot.svg.append(s("circle", { class: "focus", r: 5, cx: best.x, cy: best.y }));
    return one;
  });
  const dot = s("circle", { class: "focus", r: 4, visibility: "hidden" });
  plot.svg.append(dot);
  const find = nearest(points, 40);
  plot.svg.addEventListener("pointermove", (event) => {
    const near = find(...placeIn(plot, event));
    dot.setAttribute("visibility", near ? "visible" : "hidden");
    if (!near) return hideTip();
    element(dot, { cx: near.x, cy: near.y }, []);
    return showTip(event, [h("b", {}, titleOf(near.trial, 80)), `epoch ${near.epoch}, ${stageAt(near.trial, near.epoch)}: ${number(near.value)}`]);
  });
  plot.svg.addEventListener("pointerleave", () => { dot.setAttribute("visibility", "hidden"); hideTip(); });
}

// ---- the course by the clock

function drawCourse(host, trial) {
  const rows = courseRows(trial);
  const end = Math.max(trial.ended - trial.started, ...rows.map((row) => row.to), 1e-3);
  const names = Math.max(...rows.map((row) => textWidth(shorten(row.name, 30)))) + 14;
  const plot = frame(host, { height: rows.length * 26 + 52, label: "When the trial did what", margin: { top: 4, right: 16, bottom: 44, left: Math.min(names, 220) } });
  host.classList.add("plot");
  const x = clockAxis(plot, end, "since the trial was queued");
  const lanes = [...new Set(rows.map((row) => row.name))];
  lanes.forEach((name, i) => plot.svg.append(s("text", { class: "ink", x: plot.left - 10, y: plot.top + i * 26 + 17, "text-anchor": "end" }, fitText(name, plot.left - 10))));
  for (const row of rows) {
    const top = plot.top + lanes.indexOf(row.name) * 26 + 4;
    const bar = s("rect", { x: x(row.from), y: top, width: Math.max(2, x(row.to) - x(row.from)), height: 18, rx: 2, fill: row.waits ? "var(--pruned)" : "var(--complete)" });
    bar.addEventListener("pointermove", (event) => showTip(event, [h("b", {}, row.name), `${duration(row.to - row.from)}, from ${duration(row.from)} to ${duration(row.to)}`]));
    bar.addEventListener("pointerleave", hideTip);
    plot.svg.append(bar);
  }
  const words = trial.state === "running" ? "last sign" : trial.state;
  plot.svg.append(s("line", { class: "tick", x1: x(trial.ended - trial.started), x2: x(trial.ended - trial.started), y1: plot.top, y2: plot.bottom }));
  const [at, text] = [x(trial.ended - trial.started), `${words} at ${duration(trial.ended - trial.started)}`];
  host.append(h("p", { class: "note" }, rows.map((row) => `${row.name} ${duration(row.to - row.from)}`).join(", "), at ? `; ${text}.` : ""));
}

function courseRows(trial) {
  const first = trial.bars.length ? Math.max(0, trial.bars[0][1]) : trial.ended - trial.started;
  const opened = known(trial.opened) ? Math.min(Math.max(0, trial.opened), first) : null;
  const waiting = opened === null ? [{ name: "queued and starting", from: 0, to: first, waits: true }]
    : [{ name: "queued", from: 0, to: opened, waits: true }, { name: "starting", from: opened, to: first, waits: true }];
  return [...waiting, ...trial.bars.map(([stage, from, to]) => ({ name: `stage ${stage + 1}: ${trial.stages[stage]}`, from: Math.max(0, from), to }))];
}

// ---- the configuration as a tree

function configTree(trial) {
  const config = configOf(trial);
  const searched = searchedPaths(trial);
  const root = new Map();
  for (const [name, value] of config) {
    const keys = name.split(".");
    const leaf = keys.pop();
    let branch = root;
    for (const key of keys) {
      if (!(branch.get(key) instanceof Map)) branch.set(key, new Map());
      branch = branch.get(key);
    }
    branch.set(leaf, { name, value });
  }
  const gone = CONFIGS.base ? [...baseConfig.keys()].filter((name) => !config.has(name)) : [];
  return h("div", { class: "config" }, treeOf(root, searched),
    gone.length ? folded(`${plural(gone.length, "value")} of the base that this configuration does not have`,
      h("ul", { class: "tree" }, gone.map((name) => h("li", {}, path(name), " ", h("span", { class: "soft" }, setting(baseConfig.get(name))))))) : null);
}

function treeOf(branch, searched) {
  return h("ul", { class: "tree" }, [...branch].map(([key, value]) => {
    if (!(value instanceof Map)) return leafOf(key, value, searched);
    return h("li", {}, h("details", { open: differs(value) }, h("summary", {}, h("bdi", {}, shorten(key, 80))), treeOf(value, searched)));
  }));
}

const isChanged = ({ name, value }) => !baseConfig.has(name) || !alike(baseConfig.get(name), value);
const differs = (branch) => [...branch.values()].some((value) => (value instanceof Map ? differs(value) : isChanged(value)));

function leafOf(key, leaf, searched) {
  const changed = isChanged(leaf);
  const was = baseConfig.has(leaf.name) ? `${baseWord}: ${setting(baseConfig.get(leaf.name))}` : `not in the ${baseWord === "base" ? "base" : "others"}`;
  return h("li", { class: changed ? "changed" : null }, h("span", { class: "key" }, h("bdi", {}, shorten(key, 80))), h("bdi", { class: "value" }, setting(leaf.value)),
    searched.has(leaf.name) ? h("span", { class: "badge" }, "searched") : null, changed ? h("span", { class: "soft" }, was) : null);
}

// ---- facts

function resourceFacts(trial) {
  const held = Object.entries(trial.resources).map(([name, value]) => `${number(value)} ${name}`).join(", ");
  const facts = [
    ["Held while it ran", held || "not recorded"],
    ["Device", shorten(trial.device, 90)],
    ["Threads per process", known(trial.threads) ? count(trial.threads) : "not recorded"],
    ["Precision of the encoder", trial.precision || "not recorded"],
    ["Clips were kept in", trial.residency || "not recorded"],
    ["Seconds per epoch", trial.pace ? `${duration(trial.pace.median)} (${duration(trial.pace.least)} to ${duration(trial.pace.most)})` : "\u2013"],
    ["Training, all epochs", duration(trial.pace && trial.pace.total)],
    ["Parameters", known(trial.parameters) ? count(trial.parameters) : "\u2013"],
    ["Latency of one clip", known(trial.latency_ms) ? `${number(trial.latency_ms)} ms` : "not measured"],
    ...(trial.gpu_memory ? [["Held of a GPU's memory", `${Math.round(100 * trial.gpu_memory)} %`]] : []),
    ["Signature (run folder)", trial.signature],
  ];
  return h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function noteTable(trial) {
  const headings = [{ title: "After", num: true }, { title: "Cause" }, { title: "Note" }];
  const rows = trial.notes.map(([time, why, text]) => [duration(Math.max(0, time - trial.started)), named(why, 60), h("bdi", {}, text)]);
  return h("div", { class: "scroll" }, table(headings, rows, "wide"));
}

function notScored(trial) {
  if (!trial.epochs) return h("p", { class: "note" }, "This trial finished no epoch, so there is no model to score.");
  return h("div", {}, h("p", { class: "note" }, "This trial was not scored per tag: a search keeps only the numbers above of each trial, and scores the chosen one tag by tag at its end. " +
    "This command scores this trial on the validation split and writes the report again:"), commandLine(commandOf("report", `--score ${trial.number}`)));
}
