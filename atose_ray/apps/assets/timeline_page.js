// The page of one timeline: its sound, where it can be found, and the view.

const media = h(REPORT.video ? "video" : "audio", { class: "sound", controls: true, preload: "metadata", src: REPORT.sound });
const chosen = h("input", { type: "file", accept: "audio/*,video/*", onchange: () => { media.src = URL.createObjectURL(chosen.files[0]); } });
const missing = h("p", { class: "note", hidden: Boolean(REPORT.sound) }, "The sound is not where it was; choose it: ", chosen);
media.addEventListener("error", () => { missing.hidden = false; });
document.getElementById("player").append(media, missing);
document.getElementById("timeline").append(timelineView(REPORT, media).element);
playWithKeys(media, () => 5 * REPORT.hop);
