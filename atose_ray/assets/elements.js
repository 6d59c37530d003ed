"use strict";
// What every page uses: its data, making elements, writing numbers, the tooltip.

const REPORT = JSON.parse(document.getElementById("data").textContent);

// ---- elements: text only ever arrives as a text node, so data cannot become markup

function element(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

const h = (tag, attributes, ...children) => element(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  element(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function table(headings, rows, className) {
  const cell = (tag, value, heading) => h(tag, { class: heading.num ? "num" : heading.className }, value);
  const head = h("tr", {}, headings.map((heading) => element(cell("th", heading.title, heading), { scope: "col" }, [])));
  const body = rows.map((row) => h("tr", {}, row.map((value, i) => cell("td", value, headings[i]))));
  return h("table", { class: className || null }, h("thead", {}, head), h("tbody", {}, body));
}

// A name from outside: as long as a line of it makes sense, and right-to-left letters turn nothing around them.
const named = (text, length) => h("bdi", { title: text.length > (length || 120) ? shorten(text, 2000) : null }, shorten(text, length || 120));

const folded = (title, ...content) => h("details", {}, h("summary", {}, title), content);

// ---- numbers

const known = (value) => typeof value === "number" && Number.isFinite(value);
const count = (value) => value.toLocaleString("en-US");
const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many || one + "s"}`;
const percent = (value) => (known(value) ? (100 * value).toFixed(value && value < 0.0995 ? 1 : 0) + " %" : "\u2013");
const score = (value) => (known(value) ? value.toFixed(4) : "\u2013");
const signed = (value) => (known(value) ? (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(4) : "\u2013");

function number(value) {
  if (!known(value)) return "\u2013";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return count(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

function setting(value) {
  if (typeof value === "number") return number(value);
  return shorten(typeof value === "string" ? value : JSON.stringify(value), 300);
}

function size(parameters) {
  if (!known(parameters)) return "\u2013";
  if (parameters >= 1e6) return (parameters / 1e6).toFixed(2) + " M";
  return parameters >= 1e4 ? (parameters / 1e3).toFixed(0) + " k" : count(parameters);
}

function duration(seconds) {
  if (!known(seconds)) return "\u2013";
  if (seconds < 10) return seconds.toFixed(seconds < 1 ? 2 : 1) + " s";
  if (seconds < 60) return Math.round(seconds) + " s";
  const minutes = Math.round(seconds / 60);
  if (seconds < 600) return `${Math.floor(Math.round(seconds) / 60)} min ${String(Math.round(seconds) % 60).padStart(2, "0")} s`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function median(values) {
  const sorted = values.filter(known).sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (!sorted.length) return null;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const shorten = (text, length) => (text.length > length ? text.slice(0, length - 1).trimEnd() + "\u2026" : text);

// ---- the tooltip

function showTip(event, content) {
  const tip = document.getElementById("tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const room = 14;
  const left = event.clientX + room + tip.offsetWidth > innerWidth ? event.clientX - room - tip.offsetWidth : event.clientX + room;
  const top = event.clientY + room + tip.offsetHeight > innerHeight ? event.clientY - room - tip.offsetHeight : event.clientY + room;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}
