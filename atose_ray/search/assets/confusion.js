// Which tag is given for which, as counts; and of exclusive tags the precision and recall of each.

const NUMBERED = 50; // up to so many tags the map shows its numbers; of more the overview lists the worst confusions
const WORST_PAIRS = 20;

function drawConfusion(host) {
  const examples = bestExamples();
  if (!examples || !examples.exclusive) return host.replaceChildren();
  if (examples.tags.length > NUMBERED) {
    return host.replaceChildren(h("p", { class: "note" }, `The ${WORST_PAIRS} most frequent confusions of ${count(examples.tags.length)} tags.`), pairTable(examples, WORST_PAIRS) || noConfusion());
  }
  const map = h("div", { class: "plot scroll" });
  host.replaceChildren(h("p", { class: "note" }, confusionWords(examples)), map, confusionTable(examples));
  return confusionMap(map, examples);
}

const bestExamples = () => (REPORT.best && REPORT.examples[REPORT.best.number]) || null;

function confusionWords(examples) {
  const left = examples.tags.length - examples.confusion.tags.length;
  const some = left > 0 ? ` Shown are the ${examples.confusion.tags.length} tags with the most mistakes of ${examples.tags.length}.` : "";
  const cells = examples.exclusive ? "A row is the clips of a tag, a cell how many of them were given the column's tag; the diagonal is what is right."
    : "A cell beside the diagonal is the share of the row's clips that were given the column's tag without carrying it; the diagonal is the share that was given its own.";
  return `${decisionWords(examples)} ${cells}${some}`;
}

const confusionShare = ({ counts, carry }, row, column) => (carry[row] ? counts[row][column] / carry[row] : null);

function confusionColor(confusion, row, column) {
  const share = confusionShare(confusion, row, column);
  if (!share) return null;
  return row === column ? diagonalColor(share) : rampColor(Math.sqrt(share));
}

function confusionMap(host, examples) {
  const { confusion } = examples;
  const names = confusion.tags.map((i) => examples.tags[i]);
  const numbers = examples.exclusive && names.length <= NUMBERED;
  const width = Math.min(numbers ? 960 : 760, Math.max(260, Math.floor(host.clientWidth || 600)));
  const room = Math.min(Math.ceil(Math.max(...names.map((name) => textWidth(name.slice(0, 60))))) + 10, width * 0.3, 150);
  const cell = Math.max(numbers ? 15 : 0, Math.min((width - room) / names.length, 40));
  const side = cell * names.length;
  const plot = frame(host, { height: Math.ceil(side + room + 4), minWidth: numbers ? Math.ceil(room + side + 2) : 260, label: "Clips of a tag that were given each tag", margin: { top: room, right: 0, bottom: 0, left: room } });
  const canvas = h("canvas", { width: names.length, height: names.length });
  const pen = canvas.getContext("2d");
  names.forEach((_, row) => names.forEach((__, column) => {
    pen.fillStyle = confusionColor(confusion, row, column) || "rgb(0 0 0 / 0)";
    pen.fillRect(column, row, 1, 1);
  }));
  plot.svg.append(s("image", { class: "pixels", href: canvas.toDataURL(), x: room, y: room, width: side, height: side, preserveAspectRatio: "none" }),
    s("rect", { class: "frame", x: room, y: room, width: side, height: side }));
  const fontSize = Math.min(11.5, cell * 0.98);
  if (fontSize >= 6.5) names.forEach((name, k) => mapLabel(plot, name, room, cell, k, fontSize));
  if (numbers) writeNumbers(plot, confusion, room, cell);
  plot.svg.addEventListener("pointermove", (event) => {
    const [x, y] = placeIn(plot, event);
    const [column, row] = [Math.floor((x - room) / cell), Math.floor((y - room) / cell)];
    if (row < 0 || column < 0 || row >= names.length || column >= names.length) return hideTip();
    return showTip(event, [h("b", {}, named(names[row], 60), row === column ? "" : [" \u2192 ", named(names[column], 60)]), confusionLine(confusion, row, column)]);
  });
  plot.svg.addEventListener("pointerleave", hideTip);
}

// The counts that are not zero, each as large as its cell allows.
function writeNumbers(plot, confusion, room, cell) {
  confusion.counts.forEach((line, row) => line.forEach((n, column) => {
    if (!n) return;
    const text = count(n);
    const size = Math.min(12, cell * 0.7, (cell - 2) / (0.6 * text.length));
    const [red, green, blue] = (confusionColor(confusion, row, column) || "rgb(255,255,255)").match(/\d+/g).map(Number);
    const dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140;
    plot.svg.append(s("text", {
      class: "cell", x: room + (column + 0.5) * cell, y: room + (row + 0.5) * cell + size * 0.36, "text-anchor": "middle",
      style: `font-size:${size}px;fill:${dark ? "#ffffff" : "#15191d"};pointer-events:none`,
    }, text));
  }));
}

// The right ones in grey, so that the mistakes are what has colour.
const diagonalColor = (share) => mix({ light: "#eef0f2", dark: "#20262c" }[theme()], { light: "#6d7680", dark: "#98a1ab" }[theme()], share);
const confusionLine = (confusion, row, column) => `${count(confusion.counts[row][column])} of ${plural(confusion.carry[row], "clip")} (${percent(confusionShare(confusion, row, column))})`;

function pairTable(examples, most) {
  const { confusion } = examples;
  const pairs = confusion.counts.flatMap((line, row) => line.map((n, column) => [row, column, n])).filter(([row, column, n]) => row !== column && n > 0);
  if (!pairs.length) return null;
  const tagName = (i) => named(examples.tags[confusion.tags[i]], 60);
  const rows = pairs.sort((a, b) => b[2] - a[2]).slice(0, most).map(([row, column]) => [tagName(row), tagName(column), confusionLine(confusion, row, column)]);
  return table([{ title: "Clips of" }, { title: "were given" }, { title: "How many", num: true }], rows);
}

const noConfusion = () => h("p", { class: "note" }, "No tag was taken for another.");

function confusionTable(examples) {
  const pairs = pairTable(examples, 15);
  return pairs ? folded("The most frequent ones as a table", pairs) : noConfusion();
}

// ---- precision, recall and F1 of exclusive tags

function classTable(rows, macro, split) {
  const figure = (value) => (known(value) ? value.toFixed(3) : "\u2013");
  const body = rows.map((row) => [named(row.tag, 60), figure(row.precision), figure(row.recall), figure(row.f1), count(row.positives)]);
  const all = rows.reduce((sum, row) => sum + row.positives, 0);
  if (macro) body.unshift([h("strong", {}, "mean of the classes"), figure(macro.precision), figure(macro.recall), figure(macro.f1), count(all)]);
  const headings = [{ title: "Class" }, { title: "Precision", num: true }, { title: "Recall", num: true }, { title: "F1", num: true }, { title: `Clips (${split})`, num: true }];
  return h("div", { class: rows.length > 20 ? "scroll tall" : "scroll", tabindex: rows.length > 20 ? 0 : null }, table(headings, body, "classes"));
}

function bestClasses() {
  const { split, rows, macro } = REPORT.classes;
  return [
    classTable(rows, macro, split === "test" ? "test" : "validation"),
    h("p", { class: "note" }, `${split === "test" ? "On the test split" : "On the validation split, as this study's test scores came without them"} [${REPORT.protocol}]; the tag with the highest score is given. ` +
      "Precision is the share of the clips that were given a class which are of it (\u2013 where none was given it, which counts as 0 in the mean), recall the share of its clips that were given it, F1 their harmonic mean."),
  ];
}
