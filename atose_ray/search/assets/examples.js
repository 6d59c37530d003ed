// What a model gets wrong on validation: tags taken for others, and its worst mistakes to look at and listen to.

const decisionWords = (examples) => (examples.exclusive
  ? "The tag with the highest score is given."
  : "A tag is given to as many clips as carry it: those that score it highest.");

function drawMistakes(host) {
  const examples = bestExamples();
  if (!REPORT.best) return empty(host, "No model was chosen, so nothing was scored clip by clip.");
  if (!examples) {
    return host.replaceChildren(h("p", { class: "note" }, "The mistakes of the chosen model were not collected. This command does it, on the validation split, and writes the report again:"),
      commandLine(commandOf("report", `--score ${REPORT.best.number}`)));
  }
  host.replaceChildren(h("p", { class: "note" }, decisionWords(examples)), ...mistakeLists(examples));
  return undefined;
}

function mistakeLists(examples) {
  const lists = [["False positives: given, but not carried", examples.false_positives], ["False negatives: carried, but not given", examples.false_negatives]];
  return lists.flatMap(([title, list]) => [
    h("h3", {}, `${title} (${count(list.length)})`),
    isOld(examples, list) ? h("p", { class: "note" }, "An earlier version left these out where clips carry one tag each. This command collects them and writes the report again: ", h("code", {}, commandOf("report", `--score ${examples.number}`)))
      : list.length ? h("div", { class: "cards" }, list.map((one) => mistakeCard(one, examples))) : h("p", { class: "note" }, "None."),
  ]);
}

// Up to version 1 of examples.json a clip with exclusive tags stood in the first list only.
const isOld = (examples, list) => examples.exclusive && examples.identity.version < 2 && list === examples.false_negatives && !list.length && examples.false_positives.length > 0;

function mistakeCard(one, examples) {
  const clip = examples.clips[one.clip];
  const tag = examples.tags[one.tag];
  const sound = REPORT.sound[one.clip] && REPORT.best && REPORT.examples[REPORT.best.number] === examples ? REPORT.sound[one.clip] : null;
  const row = examples.per_tag[one.tag];
  const rank = examples.exclusive ? `place ${count(one.rank)} of the clip's ${count(examples.tags.length)} tags`
    : `place ${count(one.rank)} of ${count(row.clips)} clips; ${count(row.positives)} carry it`;
  const tags = (list) => list.map((i, k) => [k ? ", " : "", named(examples.tags[i], 60)]);
  return h("figure", { class: "card" },
    h("figcaption", {}, h("strong", {}, named(tag, 80)), h("span", { class: "soft" }, ` score ${one.score.toFixed(3)}, ${rank}`)),
    sound ? player(sound, `${shorten(clip.name, 80)}, ${shorten(tag, 80)}`) : null,
    h("div", { class: "line" }, h("bdi", { class: "path" }, shorten(clip.name, 160)), h("span", { class: "soft" }, ` ${excerptWords(clip)}`)),
    h("div", { class: "line" }, h("span", { class: "soft" }, "carries "), clip.tags.length ? tags(clip.tags) : "no tag"),
    h("div", { class: "line" }, h("span", { class: "soft" }, "highest "), one.top.map(([i, value], k) => [k ? ", " : "", named(examples.tags[i], 60), ` ${value.toFixed(2)}`])));
}

const excerptWords = (clip) => (clip.seconds > clip.from_s + 4.01 || clip.from_s > 0 ? `${duration(clip.seconds)}, its loudest 4 s from ${duration(clip.from_s)}` : duration(clip.seconds));

// ---- on the page of a trial that was scored per tag

function drawTagParts(host, examples, trial) {
  const bars = h("div", { class: "plot" });
  const map = h("div", { class: "plot scroll" });
  const mistakes = trial.number === BEST
    ? h("p", {}, h("a", { href: "#mistakes" }, "Its worst mistakes, to look at and listen to"))
    : folded("Its worst mistakes (the report holds sound for the chosen trial only)", ...mistakeLists(examples));
  const classes = examples.exclusive && "recall" in examples.per_tag[0] ? [h("h3", {}, "Precision and recall per class"), classTable(examples.per_tag, null, "validation")] : [];
  host.replaceChildren(...classes, h("h3", {}, "Average precision per tag"), bars, h("h3", {}, examples.exclusive ? "Which tag is given for which" : "Which tags are given wrongly to clips of which"),
    h("p", { class: "caption" }, confusionWords(examples)), map, confusionTable(examples), mistakes);
  tagBars(bars, examples.per_tag, "valid");
  confusionMap(map, examples);
}
