// A timeline: level and heat map on canvases, a cursor that follows the sound, events from the thresholds.
// timelineView(T, media) builds one beside a player; the service's page shows several (serve.js).

const ROW = 20, DPR = window.devicePixelRatio || 1;
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = (text) => { const pen = document.createElement("canvas").getContext("2d"); pen.fillStyle = text; pen.fillRect(0, 0, 1, 1); return pen.getImageData(0, 0, 1, 1).data; };
const clock = (s) => {
  const whole = Math.floor(s), two = (n) => String(n).padStart(2, "0");
  return `${whole >= 3600 ? Math.floor(whole / 3600) + ":" : ""}${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}.${Math.floor((s - whole) * 10)}`;
};
function fit(canvas, height) {
  canvas.style.height = `${height}px`;
  const width = Math.max(1, Math.round(canvas.clientWidth * DPR)), tall = Math.round(height * DPR);
  if (canvas.width !== width || canvas.height !== tall) canvas.width = width, canvas.height = tall;
  return canvas.getContext("2d");
}
function drawCursor(pen, canvas, share) {
  const x = share * canvas.width;
  if (x < 0 || x > canvas.width) return;
  pen.fillStyle = css("--failed");
  pen.fillRect(x - DPR, 0, 2 * DPR, canvas.height);
}

function timelineView(T, media) {
  const scores = bytes(T.scores), level = bytes(T.level), steps = level.length;
  const span = Math.max(T.high - T.low, 1e-9), toStep = (score) => ((score - T.low) / span) * 255;
  const toScore = (step) => T.low + (step / 255) * (T.high - T.low);
  const limits = T.thresholds.map(toStep), state = { from: 0, to: T.seconds, rows: T.tags.map((_, i) => i), events: [] };

  const button = (text, act) => h("button", { type: "button", onclick: act }, text);
  const part = {
    clock: h("span", { class: "clock" }), where: h("span", { class: "note" }), names: h("div", { class: "names" }), limits: h("div", { class: "limits" }),
    all: h("input", { type: "range", min: 0, max: 255 }), search: h("input", { type: "search", placeholder: "part of a name" }),
    level: h("canvas", { height: 56, role: "img", "aria-label": "Level over time; a click moves the sound there" }),
    axis: h("canvas", { height: 18, "aria-hidden": "true" }),
    map: h("canvas", { role: "img", "aria-label": "Scores of the tags over time; a click moves the sound there. The events below say the same in words" }),
    count: h("p", { class: "caption", "aria-live": "polite" }), events: h("div", { class: "events" }),
  };
  const sentence = `${duration(T.seconds)}, ${plural(T.tags.length, "tag")}${T.left_out ? ` of ${count(T.tags.length + T.left_out)}, those with the highest scores` : ""}, a score every ${number(T.hop)} s. Shift and wheel zoom; the dark or light line below a row marks where a score passes its threshold.`;
  const element = h("div", { class: "timeline" },
    h("p", { class: "lead" }, sentence),
    h("div", { class: "bar" }, part.clock, button("zoom in", () => zoom(0.5, media.currentTime || undefined)), button("zoom out", () => zoom(2)),
      button("whole recording", () => view(0, T.seconds)), button("earlier", () => move(-0.5)), button("later", () => move(0.5)), h("label", {}, "threshold of all ", part.all), h("label", {}, "tags ", part.search), part.where),
    h("div", { class: "stage" }, h("div", { class: "names", "aria-hidden": "true" }, h("div", { class: "cell level" }, "level")), part.level, h("div", { class: "limits" }),
      h("div", {}), part.axis, h("div", { class: "limits" }),
      part.names, part.map, part.limits),
    h("h3", {}, "Events"), part.count, part.events,
    folded("Settings that made it", h("pre", {}, JSON.stringify(T.settings, null, 2))));

  const seek = (s, play) => { media.currentTime = Math.max(0, Math.min(s, T.seconds)); if (play) media.play().catch(() => {}); draw(); };

  // ---- events, as apps/timeline.py makes them from thresholds, hysteresis, gaps and shortest lengths

  function eventsOf(row) {
    const at = row * steps, on = limits[row], hold = on - (T.rules.hysteresis / span) * 255, runs = [];
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
    const share = here.length < state.events.length ? `, ${count(here.length)} of them in the part that is shown` : "";
    part.count.textContent = `${plural(state.events.length, "event")} at these thresholds${share}${more > 0 ? `; the first ${count(most)} are listed: zoom in for the others` : ""}. A click plays one.`;
    part.events.replaceChildren(...here.slice(0, most).map((event) => h("button", { type: "button", onclick: () => { show(event); seek(event.start, true); } },
      h("span", { class: "path" }, `${clock(event.start)} to ${clock(event.stop)}`), named(T.tags[event.row], 60), h("span", {}, toScore(event.best).toFixed(2)))));
  }

  // ---- drawing

  const most = (values, at, x, width) => { // the highest value of the hops behind a column of pixels
    const wide = (state.to - state.from) / T.hop, first = Math.floor(state.from / T.hop + (x / width) * wide);
    const end = Math.max(first + 1, Math.ceil(state.from / T.hop + ((x + 1) / width) * wide));
    let best = 0;
    for (let i = Math.max(0, first); i < Math.min(end, steps); i++) best = Math.max(best, values[at + i]);
    return best;
  };
  const played = () => (media.currentTime - state.from) / (state.to - state.from);
  function drawLevel() {
    const canvas = part.level, pen = fit(canvas, 56), { width, height } = canvas;
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = css("--soft");
    for (let x = 0; x < width; x++) { const tall = (most(level, 0, x, width) / 255) * height; pen.fillRect(x, (height - tall) / 2, 1, Math.max(1, tall)); }
    drawCursor(pen, canvas, played());
  }
  function drawAxis() { // times below the level, as many as have room
    const canvas = part.axis, pen = fit(canvas, 18), { width, height } = canvas, wide = state.to - state.from;
    const every = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200].find((s) => (s / wide) * width >= 72 * DPR) || 86400;
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = css("--soft");
    pen.font = `${11 * DPR}px ${css("--mono")}`;
    for (let s = Math.ceil(state.from / every) * every; s <= state.to; s += every) {
      const x = ((s - state.from) / wide) * width, said = clock(s).slice(0, -2), long = pen.measureText(said).width;
      pen.fillRect(Math.min(x, width - DPR), 0, DPR, 4 * DPR);
      pen.fillText(said, Math.max(0, Math.min(x - long / 2, width - long)), height - 3 * DPR);
    }
  }
  let picture = null; // of the map without the cursor: drawn anew only when the view or a threshold changes
  function drawMap(fresh) {
    const canvas = part.map, pen = fit(canvas, Math.max(ROW, ROW * state.rows.length)), { width, height } = canvas, tall = ROW * DPR;
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
    drawCursor(pen, canvas, played());
  }
  function draw(fresh) {
    if (!element.isConnected) return; // not yet, or no more: its ResizeObserver draws it once it is
    drawLevel(); drawMap(fresh);
    if (fresh) drawAxis();
    part.clock.textContent = `${clock(media.currentTime || 0)} / ${clock(T.seconds)}`;
    part.where.textContent = `shown: ${clock(state.from)} to ${clock(state.to)}`;
  }

  // ---- the view

  let listing = 0;
  function view(from, to) {
    const wide = Math.min(T.seconds, Math.max(to - from, 5 * T.hop));
    state.from = Math.max(0, Math.min(from, T.seconds - wide));
    state.to = state.from + wide;
    draw(true);
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
  for (const canvas of [part.level, part.map]) {
    canvas.addEventListener("click", (event) => seek(timeAt(event)));
    canvas.addEventListener("wheel", (event) => { if (event.ctrlKey || event.shiftKey) { event.preventDefault(); zoom(event.deltaY + event.deltaX > 0 ? 1.25 : 0.8, timeAt(event)); } }, { passive: false });
    canvas.addEventListener("mousemove", (event) => {
      const row = canvas === part.map ? state.rows[Math.floor(event.offsetY / ROW)] : undefined, at = timeAt(event), hop = Math.min(steps - 1, Math.floor(at / T.hop));
      canvas.title = row === undefined ? clock(at) : `${T.tags[row]} ${toScore(scores[row * steps + hop]).toFixed(2)} at ${clock(at)}`;
    });
  }

  // ---- rows and thresholds

  function rows() {
    const wanted = part.search.value.trim().toLowerCase();
    state.rows = T.tags.map((_, i) => i).filter((i) => T.tags[i].toLowerCase().includes(wanted));
    part.names.replaceChildren(...state.rows.map((i) => h("div", { class: "cell" }, named(T.tags[i], 60))));
    part.limits.replaceChildren(...state.rows.map((i) => {
      const slide = h("input", { type: "range", min: 0, max: 255, step: 1, "aria-label": `threshold of ${T.tags[i]}` });
      const said = () => { slide.title = `threshold ${toScore(limits[i]).toFixed(3)}`; slide.setAttribute("aria-valuetext", toScore(limits[i]).toFixed(3)); };
      slide.value = limits[i];
      slide.oninput = () => { limits[i] = Number(slide.value); said(); later(); };
      said();
      return h("div", { class: "cell" }, slide);
    }));
    collect(); draw(true);
  }
  let timer = 0;
  const later = () => { clearTimeout(timer); timer = setTimeout(() => { collect(); draw(true); }, 60); };
  part.all.value = limits.length ? limits[0] : 128;
  part.all.oninput = () => { limits.fill(Number(part.all.value)); part.limits.querySelectorAll("input").forEach((one) => { one.value = part.all.value; }); later(); };
  part.search.oninput = rows;

  media.addEventListener("timeupdate", () => draw());
  media.addEventListener("seeked", () => draw());
  let shown = false;
  (function follow() {
    if (shown && !element.isConnected) return;
    shown = element.isConnected;
    if (!media.paused) { if (media.currentTime > state.to && !media.seeking) view(media.currentTime, media.currentTime + state.to - state.from); draw(); }
    requestAnimationFrame(follow);
  })();
  new ResizeObserver(() => draw(true)).observe(part.map);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
  rows();
  const thresholds = () => Object.fromEntries(T.tags.map((tag, i) => [tag, toScore(limits[i])]));
  return { element, seek, draw, thresholds };
}

function playWithKeys(media, step) { // outside of controls: space plays, arrows move
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, button, audio, video, summary, select, a") || !media.src) return;
    const move = (s) => { media.currentTime = Math.max(0, media.currentTime + s); };
    if (event.key === " ") { event.preventDefault(); if (media.paused) media.play().catch(() => {}); else media.pause(); }
    if (event.key === "ArrowLeft") move(-step());
    if (event.key === "ArrowRight") move(step());
  });
}
