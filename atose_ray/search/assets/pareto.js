// What a better score costs: the objective against size, time and latency, with the trials that nothing beats.

const COSTS = [
  { name: "parameters", title: "parameters of the model", of: (trial) => trial.parameters || null, show: size },
  { name: "time", title: "training time, all epochs", of: (trial) => trial.pace && trial.pace.total, show: duration },
  { name: "time per epoch", title: "median time of an epoch", of: (trial) => trial.pace && trial.pace.median, show: duration },
  { name: "latency", title: "latency of one clip in ms", of: (trial) => trial.latency_ms, show: (value) => `${number(value)} ms` },
];
let costShown = 0;

function drawPareto(host) {
  const choices = COSTS.filter((cost) => TRIALS.some((trial) => known(trial.value) && known(cost.of(trial))));
  if (!choices.length) return empty(host, "No trial has finished an epoch.");
  const cost = choices[Math.min(costShown, choices.length - 1)];
  const controls = document.getElementById("pareto-choice");
  const pick = (i) => { costShown = i; drawPareto(host); showView(); controls.querySelector("[aria-pressed=true]").focus(); };
  controls.replaceChildren(...choices.map((one, i) => h(
    "button", { type: "button", "aria-pressed": String(one === cost), onclick: () => pick(i) }, `against ${one.name}`)));
  const rows = TRIALS.filter((trial) => known(trial.value) && known(cost.of(trial))).map((trial) => ({ trial, cost: cost.of(trial) }));
  const best = front(rows);
  plotPareto(host, rows, best, cost);
  host.append(frontTable(best, cost));
  return undefined;
}

// The trials that no other trial beats in score at the same cost or less, from the cheapest.
function front(rows) {
  const sorted = [...rows].sort((a, b) => a.cost - b.cost || b.trial.value - a.trial.value || a.trial.number - b.trial.number);
  let highest = -Infinity;
  return sorted.filter(({ trial }) => {
    if (trial.value <= highest) return false;
    highest = trial.value;
    return true;
  });
}

function plotPareto(host, rows, best, cost) {
  const plot = frame(host, {
    height: 360, label: `Validation ${METRIC} of each trial against ${cost.title}`, margin: { top: 26, right: 22, bottom: 44, left: 52 }, layered: true,
  });
  const [low, high] = extent(rows.map((row) => row.cost), 0);
  const log = low > 0 && high / low > 3;
  const x = log ? logarithmic(low / 1.1, high * 1.1, plot.left + 6, plot.right - 6) : linear(...extent(rows.map((row) => row.cost), 0.06), plot.left + 6, plot.right - 6);
  const y = linear(...scoreExtent(rows.map(({ trial }) => trial.value)), plot.bottom, plot.top);
  yAxis(plot, y, `validation ${METRIC}`);
  const ticks = log ? costTicks(low / 1.1, high * 1.1) : x.ticks(Math.max(3, plot.width / 120)).filter((tick) => tick >= 0);
  xAxis(plot, x, ticks, cost.title + (log ? ", log" : ""), cost.show);
  const steps = best.map(({ trial, cost: at }, i) => (i ? `H${x(at)}V${y(trial.value)}` : `M${x(at)} ${y(trial.value)}`)).join("");
  plot.svg.append(s("path", { class: "bestline", d: steps && steps + `H${plot.right}` }));
  const front = new Set(best.map(({ trial }) => trial.number));
  const items = rows.map((row) => ({ ...row, x: x(row.cost), y: y(row.trial.value), front: front.has(row.trial.number) }));
  items.sort((a, b) => a.front - b.front);
  layer(plot, items, {
    find: nearest(items, 16), faint: rows.length > 4 * MANY ? 0.6 : 1,
    draw: (pen, item, strong, ink) => { stamp(pen, item, strong, ink); if (item.front) ring(pen, item.x, item.y, 6.5, ink.ink); },
    tip: (item) => [`${cost.title}: ${cost.show(item.cost)}`, item.front ? "on the front" : null].filter(Boolean),
  });
}

function costTicks(from, to) {
  const factors = Math.log10(to / from) > 2.5 ? [1] : Math.log10(to / from) > 1 ? [1, 3] : [1, 2, 3, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power += 1) ticks.push(...factors.map((k) => k * 10 ** power));
  const inside = ticks.filter((tick) => tick >= from && tick <= to);
  return inside.length ? inside : [from, to];
}

function frontTable(best, cost) {
  const headings = [{ title: "Trial" }, { title: METRIC, num: true }, { title: cost.title, num: true }, { title: "State" }];
  const rows = best.slice().reverse().map((row) => [trialLink(row.trial, titleOf(row.trial, 60)), score(row.trial.value), cost.show(row.cost), stateWord(row.trial.state)]);
  return folded(`The ${plural(best.length, "trial")} on the front: no other scores higher for as little`, h("div", { class: "scroll" }, table(headings, rows)));
}
