// The service's page: a sound from a file or the microphone, what every chosen model hears in it, side by side.

const $ = (id) => document.getElementById(id), KEPT = "atose_token";
const media = h("audio", { class: "sound", controls: true, preload: "metadata", "aria-label": "the sound" });
const page = { file: null, models: [], views: new Map(), picture: null, asked: 0 };
$("player").append(media);
playWithKeys(media, () => 5 * Number($("hop").value));

const say = (text, bad) => { $("status").textContent = text; $("status").classList.toggle("bad", Boolean(bad)); };

// ---- asking the service

async function call(path, options) { // -> Response, or an Error that says why
  const token = sessionStorage.getItem(KEPT), headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers }).catch(() => { throw new Error("the service does not answer; is it running?"); });
  if (response.ok) return response;
  if (response.status === 401) askForToken(token ? "That is not the token of this service." : "");
  const told = await response.json().catch(() => ({}));
  throw Object.assign(new Error(told.error || `the service refused: ${response.status}`), { status: response.status });
}
function askForToken(why) {
  sessionStorage.removeItem(KEPT);
  $("access").hidden = false; $("work").hidden = true;
  $("denied").textContent = why;
  $("denied").hidden = !why;
  $("token").select();
}
$("access").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEPT, $("token").value.trim());
  begin();
};

function question(model, format, thresholds) { // the path of a timeline
  const hop = Number($("hop").value) || 0.5, settings = { smoothing_s: Number($("smooth").value) || 0, ...(thresholds ? { thresholds } : {}) };
  const given = { model, hop_s: hop, format };
  if (thresholds || settings.smoothing_s) given.settings = JSON.stringify(settings);
  return `/timeline?${new URLSearchParams(given)}`;
}
function body() {
  const form = new FormData();
  form.append("file", page.file, page.file.name);
  return { method: "POST", body: form };
}

// ---- a sound

function lengthOf(file) { // seconds, as far as the browser knows: a recording's own, and what it cannot play, are 0
  return new Promise((known) => {
    const probe = h("audio", { preload: "metadata" }), url = URL.createObjectURL(file);
    const done = () => { URL.revokeObjectURL(url); known(Number.isFinite(probe.duration) ? probe.duration : 0); };
    probe.onloadedmetadata = probe.onerror = done;
    probe.src = url;
  });
}
async function take(file) {
  const most = REPORT.limits.max_bytes, longest = REPORT.limits.max_seconds;
  if (file.size > most) return say(`${file.name} has ${number(Math.ceil(file.size / 2 ** 20))} MiB; this service takes at most ${number(most / 2 ** 20)}. Cut it, or compress it (MP3, FLAC).`, true);
  const seconds = await lengthOf(file);
  if (seconds > longest + 1) return say(`${file.name} lasts ${duration(seconds)}; this service takes at most ${duration(longest)}. Cut it.`, true);
  page.file = file;
  URL.revokeObjectURL(media.src);
  media.src = URL.createObjectURL(file);
  $("name").replaceChildren(named(file.name));
  $("sound").hidden = false;
  $("again").disabled = false;
  $("again").title = "";
  if (!$("found").hidden) $("sound").scrollIntoView();
  picture(file);
  return ask();
}
async function picture(file) {
  $("picture").replaceChildren();
  page.picture = null;
  try {
    const buffer = await new OfflineAudioContext(1, 1, 44100).decodeAudioData(await file.arrayBuffer());
    if (page.file !== file) return;
    page.picture = soundPicture(buffer, media);
    $("picture").replaceChildren(page.picture.element);
    page.picture.draw(true);
  } catch {
    if (page.file === file) $("picture").replaceChildren(h("p", { class: "note" }, "This browser cannot decode the sound, so there is no picture of it; the models may."));
  }
}
async function ask() {
  const chosen = page.models.filter((one) => one.box.checked), round = ++page.asked;
  if (!chosen.length) return say("Choose a model.", true);
  say(`Listening to ${page.file.name} \u2026`);
  const failed = [];
  $("models").replaceChildren();
  $("models").setAttribute("aria-busy", "true");
  for (const { about } of chosen) {
    try {
      const T = await (await call(question(about.name, "view"), body())).json();
      if (round !== page.asked) return;
      show(about, T);
    } catch (error) {
      failed.push([about.name, error.message]);
      if (error.status === 404) await begin(); // it was started anew, with other models
    }
    if (round !== page.asked) return;
  }
  $("models").removeAttribute("aria-busy");
  const reasons = [...new Set(failed.map(([, why]) => why))], same = reasons.length === 1 && failed.length === chosen.length;
  say(!failed.length ? `${page.file.name}: done.` : same ? reasons[0] : failed.map(([name, why]) => `${name}: ${why}`).join(" "), failed.length > 0);
}
function show(about, T) {
  const view = timelineView(T, media), own = T.left_out === 0;
  const downloads = Object.keys(REPORT.formats).map((format) => h("button", { type: "button", onclick: () => download(about, format, own ? view.thresholds() : null) }, format));
  $("models").append(h("section", { "aria-label": `model ${about.name}` }, h("h2", {}, named(about.name)), view.element,
    h("div", { class: "downloads", role: "group", "aria-label": "downloads, with these thresholds" }, h("span", { class: "note" }, "Download: "), downloads)));
  view.draw(true);
}
async function download(about, format, thresholds) {
  try {
    const content = await (await call(question(about.name, format, thresholds), body())).blob(), url = URL.createObjectURL(content);
    h("a", { href: url, download: page.file.name.replace(/\.[^.]*$/, "") + REPORT.formats[format] }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    say(`${page.file.name}: ${format} of ${about.name} is downloaded.`);
  } catch (error) { say(error.message, true); }
}

// ---- where sounds come from

$("file").onchange = () => { if ($("file").files.length) take($("file").files[0]); };
$("again").onclick = ask;
for (const name of ["choice", "hop", "smooth"]) $(name).addEventListener("change", () => { if (page.file) say("Changed: ask again to hear it so."); });
for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
for (const name of ["dragleave", "drop"]) document.addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => { if (event.dataTransfer.files.length && page.models.length) take(event.dataTransfer.files[0]); });

let recorder = null;
$("record").onclick = async () => {
  if (recorder) return recorder.stop();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
    const parts = [], begun = performance.now();
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = () => {
      const type = recorder.mimeType.split(";")[0];
      stream.getTracks().forEach((track) => track.stop());
      recorder = null;
      $("record").textContent = "record from the microphone";
      $("record").setAttribute("aria-pressed", "false");
      take(new File(parts, `recording.${type.split("/")[1] || "webm"}`, { type }));
    };
    recorder.start();
    $("record").setAttribute("aria-pressed", "true");
    $("record").textContent = "stop and listen";
    (function tick() {
      if (!recorder) return;
      const s = (performance.now() - begun) / 1000;
      if (s > REPORT.limits.max_seconds) return recorder.stop();
      say(`Recording: ${Math.floor(s)} s`);
      setTimeout(tick, 1000);
    })();
  } catch (error) {
    recorder = null;
    const why = { NotAllowedError: "The browser was told not to lend it to this page: allow it beside the address, or choose a file.", NotFoundError: "This device has none: choose a file." };
    say(`No microphone. ${why[error.name] || error.message}`, true);
  }
};
if (!navigator.mediaDevices) $("record").disabled = true, $("record").title = "A browser lends the microphone to https and to this machine's own pages only";

// ---- the models

async function begin() {
  try {
    const abouts = await (await call("/models")).json();
    $("access").hidden = true; $("work").hidden = false;
    page.models = abouts.map((about, i) => ({ about, box: h("input", { type: "checkbox", checked: i < 2 }) }));
    $("choice").replaceChildren(h("legend", {}, "Models"), ...page.models.map((one) =>
      h("label", { title: `${one.about.sample_rate_hz} Hz` }, one.box, " ", named(one.about.name), h("span", { class: "soft" }, ` (${plural(one.about.tags.length, "tag")})`))));
    const searched = abouts.find((about) => about.finds);
    if (searched) openSearch(searched);
    say("");
  } catch (error) { say(error.message, true); }
}
const cursors = () => page.picture && page.picture.draw();
media.addEventListener("timeupdate", cursors);
media.addEventListener("seeked", cursors);
(function follow() { if (!media.paused) cursors(); requestAnimationFrame(follow); })();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.picture && page.picture.draw(true));
if (REPORT.needs_token && !sessionStorage.getItem(KEPT)) askForToken(""); else begin();
