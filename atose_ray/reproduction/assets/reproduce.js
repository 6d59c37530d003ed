// The page of published claims: how many hold, and a table per system.

const STATUSES = ["PASS", "FAIL", "OPEN", "NOT RUN"];
const KINDS = {
  parameters: "Parameter counts", recipe: "Recipes", value: "Numbers that follow from the definitions",
  vectors: "Numbers of the published code", claim: "Claims, on rendered sound (a direction at small size, no published number)",
  score: "Published scores",
};
const MANY = 8;

const verdict = (status) => h("span", { class: `verdict ${status.split(" ")[0].toLowerCase()}` }, status);
const tally = (rows) => STATUSES.map((status) => [status, rows.filter((row) => row.status === status).length]);
const every = REPORT.systems.flatMap((system) => system.rows);

function written(value) {
  if (value === null || value === undefined) return "\u2013";
  if (Number.isInteger(value)) return count(value);
  return typeof value === "number" ? number(value) : setting(value);
}

function figures(list) {
  const loose = list.some((one) => one.tolerance);
  const headings = [{ title: "" }, { title: "published" }, { title: "ours" }, ...(loose ? [{ title: "tolerance" }] : [])];
  const rows = list.map((one) => [
    one.name, written(one.published), h("span", { class: one.ok === false ? "off" : null }, written(one.ours)),
    ...(loose ? [one.tolerance ? `\u00b1 ${number(one.tolerance)}` : one.ours === null || one.ok === null ? "not judged" : "none"] : []),
  ]);
  return table(headings, rows, "figures");
}

function told(row) {
  if (row.kind === "vectors" && row.figures.length) {
    const errors = row.figures.map((one) => [one.name, h("span", { class: one.ok === false ? "off" : null }, number(one.ours)), number(one.tolerance)]);
    return table([{ title: "" }, { title: "largest error, of the peak" }, { title: "allowed" }], errors, "figures");
  }
  if (row.figures.length <= MANY) return row.figures.length ? figures(row.figures) : null;
  const off = row.figures.filter((one) => one.ok === false);
  return [h("p", {}, `${row.figures.length - off.length} of ${row.figures.length} values as published`), off.length ? figures(off) : null, folded("all values", figures(row.figures))];
}

const soft = (text) => text && h("p", { class: "soft" }, text);

function facts(row) {
  const ran = row.time && `Measured in ${duration(row.seconds)}, ${new Date(1000 * row.time).toISOString().slice(0, 16).replace("T", " ")} UTC.`;
  return [row.needs.length ? soft(`Needs: ${row.needs.join(", ")}.`) : null, soft(row.hours && `Time: ${row.hours}.`), soft(ran), h("p", {}, h("code", {}, row.name))];
}

const commands = (row) => (row.commands.length ? h("pre", {}, row.commands.join("\n")) : null);
const reason = (row) => row.reason && h("p", { class: row.status === "FAIL" ? "off" : null }, row.reason);

function cells(row) {
  const small = row.kind === "claim" && soft(row.note);
  return [
    verdict(row.status),
    [h("b", {}, row.what), row.protocol && h("span", { class: "soft" }, ` [${row.protocol}]`), h("br"), h("span", { class: "soft" }, row.source), small,
      folded("notes", small ? null : soft(row.note), soft(row.tolerance_from && `Tolerance: ${row.tolerance_from}.`), facts(row))],
    [told(row), reason(row), row.commands.length ? folded(row.status === "NOT RUN" ? "how to run it" : "commands", commands(row)) : null],
  ];
}

// ---- published tables: a line per system

function beside(row, name) {
  const one = row.figures.find((figure) => figure.name === name);
  if (!one) return "";
  return [score(one.published), " / ", h("span", { class: one.ok === false ? "off" : null }, score(one.ours))];
}

function scores(rows) {
  const tables = [...new Set(rows.map((row) => row.table))].map((name) => rows.filter((row) => row.table === name));
  return tables.map((of) => {
    const names = [...new Set(of.flatMap((row) => row.figures.map((one) => one.name)))];
    const loose = names.map((name) => [name, of.flatMap((row) => row.figures).find((one) => one.name === name && one.tolerance)]).filter(([, one]) => one);
    const shared = of.length > 1 && of.every((row) => row.status === "NOT RUN" && row.reason === of[0].reason);
    const headings = [{ title: "" }, { title: "system" }, ...names.map((title) => ({ title: h("span", {}, title, h("br"), "published / ours") })), { title: "" }];
    const body = of.map((row) => [verdict(row.status), h("span", { class: "nowrap" }, row.what), ...names.map((name) => beside(row, name)),
      [shared ? null : reason(row), folded(row.status === "NOT RUN" && row.commands.length ? "how to run it" : "notes", commands(row), soft(row.note), facts(row))]]);
    return [
      h("p", { class: "note" }, of[0].source, ". Protocol ", h("code", {}, of[0].protocol), ". ",
        loose.length ? `Tolerance: ${loose.map(([name, one]) => `${number(one.tolerance)} (${name})`).join(", ")}: ${of[0].tolerance_from}.` : ""),
      shared && h("p", {}, `Not run: ${of[0].reason}.`),
      h("div", { class: "scroll" }, table(headings, body, "wide scores")),
    ];
  });
}

function drawSystems(host, only) {
  host.replaceChildren(...REPORT.systems.map((system) => {
    const rows = system.rows.filter((row) => !only || row.status === only);
    const parts = Object.keys(KINDS).map((kind) => [kind, rows.filter((row) => row.kind === kind)]).filter(([, of]) => of.length);
    const sections = parts.map(([kind, of]) => [
      h("h3", {}, KINDS[kind], " ", h("span", { class: "soft" }, tally(of).filter(([, n]) => n).map(([status, n]) => `${n} ${status}`).join(", "))),
      kind === "score" ? scores(of) : h("div", { class: "scroll" }, table([{ title: "" }, { title: "what, and where it was published" }, { title: "published and ours" }], of.map(cells), "wide rows")),
    ]);
    const counts = tally(system.rows).map(([status, n]) => `${n} ${status}`).join(", ");
    return h("section", { id: system.name }, h("h2", {}, system.title), h("p", { class: "caption" }, `${system.paper}. ${counts}.`), sections.length ? sections : h("p", {}, "No such row."));
  }));
}

function draw() {
  const of = (name) => document.querySelector(`[data-draw="${name}"]`);
  const counts = Object.fromEntries(tally(every));
  document.getElementById("sentence").textContent =
    `${counts.PASS} rows hold, ${counts.FAIL} do not, ${counts.OPEN} stay open at this size, ${counts["NOT RUN"]} were not run at scale ${REPORT.scale}: each says why, and how it would be.`;
  of("tiles").replaceChildren(...tally(every).map(([status, n]) => h("div", {}, h("dt", {}, status), h("dd", {}, count(n)))),
    h("div", {}, h("dt", {}, "scale"), h("dd", {}, REPORT.scale)), h("div", {}, h("dt", {}, "time of the rows that ran"), h("dd", {}, duration(REPORT.seconds))));
  of("links").replaceChildren(...REPORT.systems.map((system) => h("a", { href: `#${system.name}` }, `${system.title}: ${tally(system.rows).map(([status, n]) => `${n} ${status}`).join(", ")}`)));
  const buttons = [null, ...STATUSES].map((status) => h("button", { "aria-pressed": String(!status), onclick: (event) => {
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === event.target)));
    drawSystems(of("systems"), status);
  } }, status || "all rows"));
  of("filter").replaceChildren(...buttons);
  drawSystems(of("systems"), null);
  const { machine, versions } = REPORT.about;
  document.getElementById("about").textContent = machine ? `${machine}; ${Object.entries(versions).map(([name, of]) => `${name} ${of}`).join(", ")}.` : "";
}

draw();
