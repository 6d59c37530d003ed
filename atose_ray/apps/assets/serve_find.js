// Search of the service's index: words, or a sound to be like, -> a list. A sound is fetched when it is played.

const found = { urls: [], asked: 0 };

function openSearch(about) { // of the index's model
  $("search").hidden = $("alike").hidden = false;
  const tags = about.tags.filter((tag) => !/[,:]/.test(tag));
  $("known").replaceChildren(h("summary", {}, `${plural(tags.length, "word")} that it knows${about.any_words ? "; others may be asked for too" : ""}`),
    h("div", { class: "tags" }, tags.map((tag) => h("button", { type: "button", onclick: () => addWord(tag) }, named(tag, 60)))));
}
function addWord(tag) {
  const before = $("words").value.replace(/[\s,]+$/, "");
  $("words").value = before ? `${before}, ${tag}` : tag;
  $("words").focus();
}

async function soundOf(path) { // -> File, or an Error that says why
  const blob = await (await call(`/sound?${new URLSearchParams({ path })}`)).blob();
  return new File([blob], path.split("/").pop(), { type: blob.type });
}
async function find(words, about, options) {
  const round = ++found.asked;
  say(`Searching ${about} \u2026`);
  try {
    const answer = await (await call(`/find?${new URLSearchParams({ ...(words ? { words } : {}), top: 20 })}`, options)).json();
    if (round !== found.asked) return;
    for (const url of found.urls.splice(0)) URL.revokeObjectURL(url);
    $("found").replaceChildren(...answer.found.map(row));
    $("found").hidden = false;
    $("found").scrollTop = 0;
    $("found").scrollIntoView({ block: "nearest" });
    say(`${about}: the best ${count(answer.found.length)} of ${plural(answer.files, "sound")}.`);
  } catch (error) { if (round === found.asked) say(error.message, true); }
}
function row(one, i) {
  const terms = Object.entries(one.terms).map(([name, score]) => `${name} ${score.toFixed(2)}`).join(", "), act = h("div", { class: "acts" });
  const fetched = (then) => async (event) => {
    const pressed = event.currentTarget;
    pressed.disabled = true;
    try { await then(await soundOf(one.path)); } catch (error) { act.replaceChildren(h("span", { class: "note", role: "alert" }, error.message)); }
    pressed.disabled = false;
  };
  act.append(
    h("button", { type: "button", "aria-label": `play ${one.path}`, onclick: fetched((file) => play(one, file, act)) }, "play"),
    h("button", { type: "button", "aria-label": `what sounds when in ${one.path}`, onclick: fetched(take) }, "what sounds when"));
  return h("li", {}, h("span", { class: "rank" }, i + 1),
    h("div", {}, h("strong", { class: "path" }, named(one.path)), h("div", { class: "note" }, `${terms}; fits best at ${clock(one.start_s)}`)), act);
}
function play(one, file, act) { // a player in the place of its button, from where the sound fits best
  const url = URL.createObjectURL(file), sound = h("audio", { controls: true, "aria-label": one.path });
  found.urls.push(url);
  sound.onloadedmetadata = () => { if (one.start_s < sound.duration) sound.currentTime = one.start_s; };
  sound.onerror = () => sound.replaceWith(h("span", { class: "note", role: "alert" }, "This browser cannot play the sound; a model can still hear it."));
  sound.onplay = () => document.querySelectorAll("audio").forEach((other) => { if (other !== sound) other.pause(); });
  act.firstElementChild.replaceWith(sound);
  sound.src = url;
  sound.focus({ preventScroll: true });
  return sound.play().catch(() => {});
}

$("search").onsubmit = (event) => {
  event.preventDefault();
  const words = $("words").value.trim();
  if (words) find(words, words, { method: "POST" }); else say("Write what to look for, or choose from the words below.", true);
};
$("alike").onclick = () => find("", `like ${page.file.name}`, body());
