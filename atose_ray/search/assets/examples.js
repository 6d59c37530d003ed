// What a model gets wrong on validation: tags taken for others, and its worst mistakes to look at and listen to.

const decisionWords = (examples) => (examples.exclusive
  ? "The tag with the highest score is given."
  : "A tag is given to as many clips as carry it: those that score it highest.");

function drawMistakes(host) {
  const examples = REPORT.best ? REPORT.examples[REPORT.best.number] : null;
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
    list.length ? h("div", { class: "cards" }, list.map((one) => mistakeCard(one, examples))) : h("p", { class: "note" }, "None."),
  ]);
}

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
  const map = h("div", { class: "plot" });
  const mistakes = trial.number === BEST
    ? h("p", {}, h("a", { href: "#mistakes" }, "Its worst mistakes, to look at and listen to"))
    : folded("Its worst mistakes (the report holds sound for the chosen trial only)", ...mistakeLists(examples));
  host.replaceChildren(h("h3", {}, "Average precision per tag"), bars, h("h3", {}, examples.exclusive ? "Which tag is given for which" : "Which tags are given wrongly to clips of which"),
    h("p", { class: "caption" }, confusionWords(examples)), map, confusionTable(examples), mistakes);
  tagBars(bars, examples.per_tag, "valid");
  confusionMap(map, examples);
}

function confusionWords(examples) {
  const left = examples.tags.length - examples.confusion.tags.length;
  const some = left > 0 ? ` Shown are the ${examples.confusion.tags.length} tags with the most mistakes of ${examples.tags.length}.` : "";
  const cells = examples.exclusive ? "A cell is the share of the row's clips that were given the column's tag; the diagonal is what is right."
    : "A cell beside the diagonal is the share of the row's clips that were given the column's tag without carrying it; the diagonal is the share that was given its own.";
  return `${decisionWords(examples)} ${cells}${some}`;
}

const confusionShare = ({ counts, carry }, row, column) => (carry[row] ? counts[row][column] / carry[row] : null);

function confusionMap(host, examples) {
  const { confusion } = examples;
  const names = confusion.tags.map((i) => examples.tags[i]);
  const width = Math.min(760, Math.max(260, Math.floor(host.clientWidth || 600)));
  const room = Math.min(Math.ceil(Math.max(...names.map((name) => textWidth(name.slice(0, 60))))) + 10, width * 0.3, 150);
  const cell = Math.min((width - room) / names.length, 40);
  const side = cell * names.length;
  const plot = frame(host, { height: Math.ceil(side + room + 4), label: "Share of a tag's clips that were given each tag", margin: { top: room, right: 0, bottom: 0, left: room } });
  const canvas = h("canvas", { width: names.length, height: names.length });
  const pen = canvas.getContext("2d");
  names.forEach((_, row) => names.forEach((__, column) => {
    const share = confusionShare(confusion, row, column);
    pen.fillStyle = share === null || share === 0 ? "rgb(0 0 0 / 0)" : row === column ? diagonalColor(share) : rampColor(Math.sqrt(share));
    pen.fillRect(column, row, 1, 1);
  }));
  plot.svg.append(s("image", { class: "pixels", href: canvas.toDataURL(), x: room, y: room, width: side, height: side, preserveAspectRatio: "none" }),
    s("rect", { class: "frame", x: room, y: room, width: side, height: side }));
  const fontSize = Math.min(11.5, cell * 0.98);
  if (fontSize >= 6.5) names.forEach((name, k) => mapLabel(plot, name, room, cell, k, fontSize));
  plot.svg.addEventListener("pointermove", (event) => {
    const [x, y] = placeIn(plot, event);
    const [column, row] = [Math.floor((x - room) / cell), Math.floor((y - room) / cell)];
    if (row < 0 || column < 0 || row >= names.length || column >= names.length) return hideTip();
    return showTip(event, [h("b", {}, named(names[row], 60), row === column ? "" : [" \u2192 ", named(names[column], 60)]), confusionLine(confusion, row, column)]);
  });
  plot.svg.addEventListener("pointerleave", hideTip);
}

// The right ones in grey, so that the mistakes are what has colour.
const diagonalColor = (share) => mix({ light: "#eef0f2", dark: "#20262c" }[theme()], { light: "#6d7680", dark: "#98a1ab" }[theme()], share);
const confusionLine = (confusion, row, column) => `${count(confusion.counts[row][column])} of ${plural(confusion.carry[row], "clip")} (${percent(confusionShare(confusion, row, column))})`;

function confusionTable(examples) {
  const { confusion } = examples;
  const pairs = confusion.counts.flatMap((line, row) => line.map((n, column) => [row, column, n])).filter(([row, column, n]) => row !== column && n > 0);
  const top = pairs.sort((a, b) => b[2] - a[2]).slice(0, 15);
  if (!top.length) return h("p", { class: "note" }, "No tag was taken for another.");
  const tagName = (i) => named(examples.tags[confusion.tags[i]], 60);
  const rows = top.map(([row, column]) => [tagName(row), tagName(column), confusionLine(confusion, row, column)]);
  return folded("The most frequent ones as a table", table([{ title: "Clips of" }, { title: "were given" }, { title: "How many", num: true }], rows));
}
