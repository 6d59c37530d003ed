// /docs: the routes of the service, from its OpenAPI schema.

document.getElementById("about").append(REPORT.about);
document.getElementById("routes").append(...REPORT.routes.map((one) => h("section", {},
  h("h2", { class: "path" }, one.route),
  h("p", {}, one.summary, one.takes.length ? ` Takes ${one.takes.join(", ")}.` : ""),
  one.parameters.length ? table([{ title: "parameter" }, { title: "what it is" }], one.parameters.map((p) => [h("code", {}, p.name), p.description])) : null)));
