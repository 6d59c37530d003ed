// Of a search that still runs: the file is written again from time to time, and the page loads itself anew if asked to,
// at the same place. It asks no network for anything.

const LIVE_KEY = "reload";
const kept = { read: () => { try { return JSON.parse(sessionStorage.getItem(LIVE_KEY)); } catch { return null; } },
  write: (value) => { try { sessionStorage.setItem(LIVE_KEY, JSON.stringify(value)); } catch { /* a browser without storage: asks again */ } } };
let reloading = null;

function drawLive(host) {
  if (!REPORT.live) return host.replaceChildren();
  const { seconds, left, rate } = REPORT.live;
  const asked = Boolean((kept.read() || {}).on);
  const box = h("input", { type: "checkbox", checked: asked, onchange: () => setReload(box.checked) });
  host.replaceChildren(h("p", { class: "note live" }, `The search runs: ${count(REPORT.study.ended)} of ${known(SEARCH.trials) ? count(SEARCH.trials) : "its"} trials have ended`
    + `${known(left) ? `, ${number(rate)} an hour; about ${duration(left)} are left` : ""}. This file is written again every ${duration(seconds)}. `, h("label", {}, box, ` load it again every ${duration(seconds)}`)));
  return setReload(asked);
}

function setReload(on) {
  clearInterval(reloading);
  const state = kept.read() || {};
  kept.write({ ...state, on });
  if (on) reloading = setInterval(reloadHere, 1000 * Math.max(2, REPORT.live.seconds));
}

function reloadHere() {
  const playing = [...document.querySelectorAll("audio")].some((one) => !one.paused);
  if (playing || document.hidden) return;
  kept.write({ on: true, top: scrollY, hash: location.hash });
  location.reload();
}

// After a reload that the page did itself: where the reader was.
function returnToPlace() {
  const state = kept.read();
  if (!state || state.top === undefined || state.hash !== location.hash) return;
  kept.write({ on: state.on });
  scrollTo({ top: state.top, behavior: "instant" });
}
