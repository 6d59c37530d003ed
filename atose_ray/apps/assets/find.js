// The page of `find`: a row per sound, with a player that begins where the sound fits best.

function player(one) {
  if (!one.sound) return h("span", { class: "no-sound note" }, "lies in object storage: no player here");
  const sound = h("audio", { controls: true, preload: "none", src: one.sound });
  sound.addEventListener("loadedmetadata", () => { if (one.start_s < sound.duration) sound.currentTime = one.start_s; }, { once: true });
  return sound;
}

const terms = (one) => Object.entries(one.terms).map(([name, score]) => `${name} ${score.toFixed(3)}`).join(", ");

document.getElementById("folder").append(`The ${plural(REPORT.found.length, "best file")} of ${REPORT.folder}, best first.`);
document.getElementById("found").replaceChildren(...REPORT.found.flatMap((one, i) => [
  h("span", { class: "rank" }, i + 1),
  h("div", {}, h("strong", { class: "path" }, named(one.path)),
    h("div", { class: "note" }, `${one.score.toFixed(3)} (${terms(one)}); best at ${one.start_s.toFixed(1)} s`)),
  player(one),
]));
