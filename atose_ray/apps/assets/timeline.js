// The page of a timeline: level and heat map on canvases, a cursor that follows the sound, events from the thresholds.

const ROW = 20, DPR = window.devicePixelRatio || 1, $ = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const T = REPORT, scores = bytes(T.scores), level = bytes(T.level), steps = level.length;
const toStep = (score) => ((score - T.low) / Math.max(T.high - T.low, 1e-9)) * 255;
const toScore = (step) => T.low + (step / 255) * (T.high - T.low);
const limits = T.thresholds.map(toStep), state = { from: 0, to: T.seconds, rows: T.tags.map((_, i) => i), events: [] };

const clock = (s) => {
  const whole = Math.floor(s), two = (n) => String(n).padStart(2, "0");
  return `${whole >= 3600 ? Math.floor(whole / 3600) + ":" : ""}${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}.${Math.floor((s - whole) * 10)}`;
};

// ---- the sound

const media = h(T.video ? "video" : "audio", { id: "media", controls: true, preload: "metadata", src: T.sound });
const chosen = h("input", { type: "file", accept: "audio/*,video/*", onchange: () => { media.src = URL.createObjectURL(chosen.files[0]); } });
const missing = h("p", { class: "note", hidden: Boolean(T.sound) }, "The sound is not where it was; choose it: ", chosen);
media.addEventListener("error", () => { missing.hidden = false; });
$("player").append(media, missing);
const seek = (s, play) => { media.currentTime = Math.max(0, Math.min(s, T.seconds)); if (play) media.play().catch(() => {}); drawAll(); };

// ---- events, as apps/timeline.py makes them from thresholds, hysteresis, gaps and shortest lengths

function eventsOf(row) {
  const at = row * steps, on = limits[row], hold = on - (T.rules.hysteresis / Math.max(T.high - T.low, 1e-9)) * 255, runs = [];
  for (let i = 0; i < steps; i++) {
    if (scores[at + i] < hold) continue;
    const first = i; let best = 0;
    while (i < steps && scores[at + i] >= hold) best = Math.max(best, scores[at + i++]);
    if (best < on) continue;
    const last = runs[runs.length - 1];
    if (last && T.rules.join_gap_s > 0 && (first - last.end) * T.hop <= T.rules.join_gap_s + 1e-9) last.end = i, last.best = Math.max(last.best, best);
    else runs.push({ row, first, end: i, best });
  }
  return runs.filter((run) => (run.end - run.first) * T.hop >= T.rules.min_duration_s - 1e-9)
    .map((run) => ({ ...run, start: run.first * T.hop, stop: Math.min(run.end * T.hop, T.seconds) }));
}

function collect() {
  state.events = state.rows.flatMap(eventsOf).sort((a, b) => a.start - b.start || a.row - b.row);
  list();
}
function list() { // those of the part that is shown
  const most = 1000, here = state.events.filter((event) => event.stop > state.from && event.start < state.to), more = here.length - most;
  const part = here.length < state.events.length ? `, ${count(here.length)} of them in the part that is shown` : "";
  $("count").textContent = `${plural(state.events.length, "event")} at these thresholds${part}${more > 0 ? `; the first ${count(most)} are listed: zoom in for the others` : ""}. A click plays one.`;
  $("events").replaceChildren(...here.slice(0, most).map((event) => h("button", { type: "button", onclick: () => { show(event); seek(event.start, true); } },
    h("span", { class: "path" }, `${clock(event.start)} to ${clock(event.stop)}`), named(T.tags[event.row], 60), h("span", {}, toScore(event.best).toFixed(2)))));
}

// ---- drawing

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function fit(canvas, height) {
  canvas.style.height = `${height}px`;
  const width = Math.max(1, Math.round(canvas.clientWidth * DPR)), tall = Math.round(height * DPR);
  if (canvas.width !== width || canvas.height !== tall) canvas.width = width, canvas.height = tall;
  return canvas.getContext("2d");
}
const most = (values, at, x, width) => { // the highest value of the hops behind a column of pixels
  const span = (state.to - state.from) / T.hop, first = Math.floor(state.from / T.hop + (x / width) * span);
  const end = Math.max(first + 1, Math.ceil(state.from / T.hop + ((x + 1) / width) * span));
  let best = 0;
  for (let i = Math.max(0, first); i < Math.min(end, steps); i++) best = Math.max(best, values[at + i]);
  return best;
};
function cursor(pen, canvas) {
  const x = ((media.currentTime - state.from) / (state.to - state.from)) * canvas.width;
  if (x < 0 || x > canvas.width) return;
  pen.fillStyle = css("--failed");
  pen.fillRect(x - DPR, 0, 2 * DPR, canvas.height);
}
function drawLevel() {
  const canvas = $("level"), pen = fit(canvas, 56), { width, height } = canvas;
  pen.clearRect(0, 0, width, height);
  pen.fillStyle = css("--soft");
  for (let x = 0; x < width; x++) { const tall = (most(level, 0, x, width) / 255) * height; pen.fillRect(x, (height - tall) / 2, 1, Math.max(1, tall)); }
  cursor(pen, canvas);
}
function drawAxis() { // times below the level, as many as have room
  const canvas = $("axis"), pen = fit(canvas, 18), { width, height } = canvas, span = state.to - state.from;
  const every = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200].find((s) => (s / span) * width >= 72 * DPR) || 86400;
  pen.clearRect(0, 0, width, height);
  pen.fillStyle = css("--soft");
  pen.font = `${11 * DPR}px ${css("--mono")}`;
  for (let s = Math.ceil(state.from / every) * every; s <= state.to; s += every) {
    const x = ((s - state.from) / span) * width, said = clock(s).slice(0, -2), wide = pen.measureText(said).width;
    pen.fillRect(Math.min(x, width - DPR), 0, DPR, 4 * DPR);
    pen.fillText(said, Math.max(0, Math.min(x - wide / 2, width - wide)), height - 3 * DPR);
  }
}
const rgb = (text) => { const pen = document.createElement("canvas").getContext("2d"); pen.fillStyle = text; pen.fillRect(0, 0, 1, 1); return pen.getImageData(0, 0, 1, 1).data; };
let picture = null; // of the map without the cursor: drawn anew only when the view or a threshold changes
function drawMap(fresh) {
  const canvas = $("map"), pen = fit(canvas, Math.max(ROW, ROW * state.rows.length)), { width, height } = canvas, tall = ROW * DPR;
  if (fresh || !picture || picture.width !== width || picture.height !== height) {
    const paper = rgb(css("--grid")), ink = rgb(css("--accent")), mark = rgb(css("--ink"));
    picture = pen.createImageData(width, height);
    const pixels = new Uint32Array(picture.data.buffer);
    const mix = (share) => (255 << 24) | (Math.round(paper[2] + (ink[2] - paper[2]) * share) << 16) | (Math.round(paper[1] + (ink[1] - paper[1]) * share) << 8) | Math.round(paper[0] + (ink[0] - paper[0]) * share);
    const ramp = Array.from({ length: 256 }, (_, i) => mix(i / 255)), solid = (255 << 24) | (mark[2] << 16) | (mark[1] << 8) | mark[0];
    state.rows.forEach((row, place) => {
      const top = Math.round(place * tall), bottom = Math.round((place + 1) * tall) - 1;
      for (let x = 0; x < width; x++) {
        const best = most(scores, row * steps, x, width), colour = ramp[best];
        for (let y = top; y < bottom; y++) pixels[y * width + x] = colour;
        if (best >= limits[row]) for (let y = Math.max(top, bottom - Math.ceil(3 * DPR)); y < bottom; y++) pixels[y * width + x] = solid;
      }
    });
  }
  pen.putImageData(picture, 0, 0);
  cursor(pen, canvas);
}
function drawAll(fresh) {
  drawLevel(); drawMap(fresh);
  if (fresh) drawAxis();
  $("clock").textContent = `${clock(media.currentTime || 0)} / ${clock(T.seconds)}`;
  $("where").textContent = `shown: ${clock(state.from)} to ${clock(state.to)}`;
}

// ---- the view

let listing = 0;
function view(from, to) {
  const span = Math.min(T.seconds, Math.max(to - from, 5 * T.hop));
  state.from = Math.max(0, Math.min(from, T.seconds - span));
  state.to = state.from + span;
  drawAll(true);
  clearTimeout(listing);
  listing = setTimeout(list, 60);
}
const move = (share) => view(state.from + share * (state.to - state.from), state.to + share * (state.to - state.from));
const zoom = (factor, around) => {
  const at = around === undefined ? (state.from + state.to) / 2 : around;
  view(at - (at - state.from) * factor, at + (state.to - at) * factor);
};
function show(event) {
  if (event.start < state.from || event.stop > state.to) view(event.start - (state.to - state.from) / 2, event.start + (state.to - state.from) / 2);
}
const timeAt = (event) => { const box = event.target.getBoundingClientRect(); return state.from + ((event.clientX - box.left) / box.width) * (state.to - state.from); };
for (const id of ["level", "map"]) {
  $(id).addEventListener("click", (event) => seek(timeAt(event)));
  $(id).addEventListener("wheel", (event) => { if (event.ctrlKey || event.shiftKey) { event.preventDefault(); zoom(event.deltaY + event.deltaX > 0 ? 1.25 : 0.8, timeAt(event)); } }, { passive: false });
  $(id).addEventListener("mousemove", (event) => {
    const row = id === "map" ? state.rows[Math.floor((event.offsetY) / ROW)] : undefined, at = timeAt(event), hop = Math.min(steps - 1, Math.floor(at / T.hop));
    event.target.title = row === undefined ? clock(at) : `${T.tags[row]} ${toScore(scores[row * steps + hop]).toFixed(2)} at ${clock(at)}`;
  });
}
$("in").onclick = () => zoom(0.5, media.currentTime || undefined);
$("out").onclick = () => zoom(2);
$("all").onclick = () => view(0, T.seconds);
$("earlier").onclick = () => move(-0.5);
$("later").onclick = () => move(0.5);
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, button, audio, video, summary")) return;
  if (event.key === " ") { event.preventDefault(); if (media.paused) media.play().catch(() => {}); else media.pause(); }
  if (event.key === "ArrowLeft") seek(media.currentTime - 5 * T.hop);
  if (event.key === "ArrowRight") seek(media.currentTime + 5 * T.hop);
});

// ---- rows and thresholds

function rows() {
  const wanted = $("search").value.trim().toLowerCase();
  state.rows = T.tags.map((_, i) => i).filter((i) => T.tags[i].toLowerCase().includes(wanted));
  $("names").replaceChildren(...state.rows.map((i) => h("div", { class: "cell" }, named(T.tags[i], 60))));
  $("limits").replaceChildren(...state.rows.map((i) => {
    const slide = h("input", { type: "range", min: 0, max: 255, step: 1, "aria-label": `threshold of ${T.tags[i]}` });
    const said = () => { slide.title = `threshold ${toScore(limits[i]).toFixed(3)}`; };
    slide.value = limits[i];
    slide.oninput = () => { limits[i] = Number(slide.value); said(); later(); };
    said();
    return h("div", { class: "cell" }, slide);
  }));
  collect(); drawAll(true);
}
let timer = 0;
const later = () => { clearTimeout(timer); timer = setTimeout(() => { collect(); drawAll(true); }, 60); };
$("limit").value = limits.length ? limits[0] : 128;
$("limit").oninput = () => { limits.fill(Number($("limit").value)); document.querySelectorAll("#limits input").forEach((one) => { one.value = $("limit").value; }); later(); };
$("search").oninput = rows;

$("sentence").textContent = `${duration(T.seconds)}, ${plural(T.tags.length, "tag")}${T.left_out ? ` of ${count(T.tags.length + T.left_out)}, those with the highest scores` : ""}, a score every ${number(T.hop)} s. Shift and wheel zoom; the line below a row marks where a score passes its threshold.`;
$("settings").textContent = JSON.stringify(T.settings, null, 2);
media.addEventListener("timeupdate", () => drawAll());
media.addEventListener("seeked", () => drawAll());
(function follow() { if (!media.paused) { if (media.currentTime > state.to && !media.seeking) view(media.currentTime, media.currentTime + state.to - state.from); drawAll(); } requestAnimationFrame(follow); })();
new ResizeObserver(() => drawAll(true)).observe($("map"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(true));
rows();
