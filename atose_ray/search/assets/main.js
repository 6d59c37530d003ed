// Draw everything; draw again when the width, the colours or the medium change. One broken part must not take the rest.

let printing = false;
const darkPaper = matchMedia("(prefers-color-scheme: dark)");
const theme = () => (darkPaper.matches && !printing ? "dark" : "light");

const PARTS = {
  best: drawBest, space: drawSpace, data: drawData, history: drawHistory, curves: drawCurves, parallel: drawParallel,
  importances: drawImportances, perTag: drawPerTag, tagMaps: drawTagMaps, failures: drawFailures, timeline: drawTimeline,
  devices: drawDevices, trials: drawTrials,
};
const SIZED = ["history", "curves", "parallel", "importances", "perTag", "tagMaps", "timeline"];

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
  marks = marks.filter((mark) => mark.node.isConnected);
  showView();
}

function drawAgain() {
  brushes.clear(); // they are kept in pixels
  hideTip();
  draw(SIZED);
}

function drawAll() {
  attempt("head", drawHead);
  attempt("versions", drawVersions);
  document.querySelectorAll("[data-legend=states]").forEach(stateLegend);
  draw(Object.keys(PARTS));
  document.documentElement.dataset.ready = "true";
}

let closed = [];

function forPrint(on) {
  printing = on;
  drawAgain();
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
addEventListener("beforeprint", () => forPrint(true));
addEventListener("afterprint", () => forPrint(false));
addEventListener("keydown", (event) => { if (event.key === "Escape" && view.selected !== null) select(view.selected); });
drawAll();
