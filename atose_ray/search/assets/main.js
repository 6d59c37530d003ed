// Draw everything; draw again when the width, the colours or the medium change; show the overview or the page of a
// trial, as the address says. One broken part must not take the rest.

let printing = false;
const darkPaper = matchMedia("(prefers-color-scheme: dark)");
const theme = () => (darkPaper.matches && !printing ? "dark" : "light");

const PARTS = {
  live: drawLive, best: drawBest, promotion: drawPromotion, crossvalidation: drawCrossvalidation, groups: drawGroups, space: drawSpace, data: drawData, history: drawHistory, pareto: drawPareto, curves: drawCurves,
  parallel: drawParallel, importances: drawImportances, perTag: drawPerTag, confusion: drawConfusion, mistakes: drawMistakes, tagMaps: drawTagMaps, failures: drawFailures,
  timeline: drawTimeline, devices: drawDevices, trials: drawTrials,
};
const SIZED = ["promotion", "crossvalidation", "history", "pareto", "curves", "parallel", "importances", "perTag", "confusion", "mistakes", "tagMaps", "timeline"];

// Parts that this study has nothing for.
const ABSENT = {
  crossvalidation: () => !REPORT.crossvalidation, groups: () => !TRIALS.length, confusion: () => !(bestExamples() || {}).exclusive,
  "tag-maps": () => REPORT.data.exclusive && !REPORT.tag_maps.cosine,
};

function complain(where, error) {
  const box = document.getElementById("errors");
  document.documentElement.dataset.error = `${where}: ${error}`;
  box.hidden = false;
  box.append(h("div", {}, `This part of the page could not be drawn: ${where} (${error}).`));
}

window.addEventListener("error", (event) => complain("script", event.message));

function attempt(name, draw) {
  try {
    draw();
  } catch (error) {
    complain(name, error);
  }
}

function draw(names) {
  for (const name of names) attempt(name, () => PARTS[name](document.querySelector(`[data-draw="${name}"]`)));
  showView();
}

function drawAgain() {
  brushes.clear(); // they are kept in pixels
  hideTip();
  stale = overview.hidden;
  if (stale) showDetail();
  else draw(SIZED);
}

function exclusiveCaptions() {
  const captions = {
    "per-tag": "Of each class over all clips of the split. In the plot the tick is the share of clips that are of the class (its prevalence), which is what guessing scores.",
    "tag-maps": "The cosine of the tag embeddings that the best trial with tag embeddings learned (it need not be the best of all). Point at a cell, or use the arrow keys.",
  };
  for (const [id, text] of Object.entries(captions)) document.querySelector(`#${id} .caption`).textContent = text;
}

function drawAll() {
  for (const [id, absent] of Object.entries(ABSENT)) document.getElementById(id).hidden = absent();
  if (REPORT.data.exclusive) exclusiveCaptions();
  attempt("head", drawHead);
  attempt("versions", drawVersions);
  document.querySelectorAll("[data-legend=states]").forEach(stateLegend);
  draw(Object.keys(PARTS));
  route();
  returnToPlace();
  document.documentElement.dataset.ready = "true";
}

// ---- the address: #trial-17, #compare-17-3, or a part of the overview

const overview = document.getElementById("overview");
const detail = document.getElementById("detail");
const reportTitle = document.title;
let stale = false; // the overview was drawn for another width or other colours
let overviewTop = 0;

function route() {
  const asked = /^#(trial|compare)(?:-(\d+))?(?:-(\d+))?$/.exec(location.hash);
  hideTip();
  point(null);
  if (!asked) return showOverview();
  if (!overview.hidden) overviewTop = scrollY;
  overview.hidden = true;
  detail.hidden = false;
  showDetail();
  scrollTo({ top: 0, behavior: "instant" });
  const title = detail.querySelector("h1");
  document.title = `${title.textContent}: ${reportTitle}`;
  return title.focus({ preventScroll: true });
}

function showDetail() {
  const [, kind, ...numbers] = /^#(trial|compare)(?:-(\d+))?(?:-(\d+))?$/.exec(location.hash) || [];
  const [first, second] = numbers.map((text) => (text === undefined ? undefined : byNumber.get(Number(text))));
  if (kind === "trial" && first) view.selected = first.number;
  if (kind === "trial" && !first) return missingPage(numbers[0]);
  return attempt("page", () => (kind === "trial" ? drawTrialPage(detail, first) : drawComparePage(detail, first, second)));
}

function missingPage(text) {
  detail.replaceChildren(h("header", {}, h("nav", {}, h("a", { href: "#summary" }, "\u2190 the whole search")), h("h1", { tabindex: -1 }, `There is no trial ${text || ""} in this report`)));
}

function showOverview() {
  if (!overview.hidden) return;
  overview.hidden = false;
  detail.hidden = true;
  detail.replaceChildren();
  document.title = reportTitle;
  if (stale) draw(SIZED);
  else showView();
  stale = false;
  const place = location.hash.length > 1 && location.hash !== "#summary" && document.getElementById(location.hash.slice(1));
  if (place) place.scrollIntoView({ behavior: "instant" });
  else scrollTo({ top: overviewTop, behavior: "instant" });
}

// ---- print, width, colours

let closed = [];

function forPrint(on) {
  printing = on;
  document.documentElement.toggleAttribute("data-print", on);
  drawAgain();
  if (on) drawAllPictures();
  if (on) closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((one) => { one.open = on; });
}

let waiting = null;
let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === lastWidth) return; // a phone hides its address bar: only the height changes
  lastWidth = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(drawAgain, 150);
});
darkPaper.addEventListener("change", drawAgain);
addEventListener("hashchange", route);
addEventListener("beforeprint", () => forPrint(true));
addEventListener("afterprint", () => forPrint(false));
addEventListener("keydown", (event) => { if (event.key === "Escape" && view.selected !== null && !overview.hidden) select(view.selected); });
drawAll();
