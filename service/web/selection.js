// @ts-check
/**
 * Images that were selected, among matches and while browsing, and the list of them.
 *
 * @import { IndexedImage, Match } from "./api.js"
 * @typedef {IndexedImage & Partial<Match>} Selected Without a score if it was no match.
 */

import { compare } from "./address.js";
import { announce, element, get } from "./dom.js";
import { browsing, search } from "./state.js";
import { nameOf, readable } from "./words.js";

/** @type {Map<string, Selected>} In the order in which they were selected. */
const selected = new Map();

/**
 * The button that selects an image.
 *
 * @param {Selected} image
 */
export function selectButton(image) {
  const button = element("button", { type: "button", className: "select", title: "Select" }, "✓");
  button.dataset.id = image.id;
  button.setAttribute("aria-label", `Select ${nameOf(image)}`);
  button.setAttribute("aria-pressed", `${selected.has(image.id)}`);
  button.addEventListener("click", () => {
    if (!selected.delete(image.id)) selected.set(image.id, image);
    showSelection();
  });
  return button;
}

function showSelection() {
  for (const button of document.querySelectorAll("button.select")) {
    const { id } = /** @type {HTMLElement} */ (button).dataset;
    button.setAttribute("aria-pressed", `${selected.has(id ?? "")}`);
  }
  document.body.classList.toggle("selecting", selected.size > 0);
  get("selection").hidden = selected.size === 0;
  get("selection-compare").hidden = toCompare() === null;
  get("selection-count").textContent = `${selected.size} selected`;
  announce(`${selected.size} selected`);
}

/** Two that are selected; or one, and the picture that was searched with. */
function toCompare() {
  const [first, second, ...others] = [...selected.keys()].map((id) => ({ id }));
  const query = browsing.value ? null : search.value.query;
  if (first && second && others.length === 0) return { a: first, b: second };
  return first && !second && query ? { a: query, b: first } : null;
}

/** @param {Selected} image */
function row({ id, label, score, confidence, metadata = {} }) {
  return { id, name: readable(id), label, score: score ?? null, confidence: confidence ?? null, metadata };
}

function toJson() {
  return `${JSON.stringify([...selected.values()].map(row), null, 2)}\n`;
}

/** As RFC 4180 has it. */
function toCsv() {
  const rows = [...selected.values()].map(row).map(({ metadata, ...facts }) => {
    const more = Object.entries(metadata).map(([key, value]) => [`metadata.${key}`, value]);
    return { ...facts, ...Object.fromEntries(more) };
  });
  const columns = [...new Set(rows.flatMap(Object.keys))];
  const lines = [columns, ...rows.map((facts) => columns.map((column) => facts[column]))];
  return lines.map((cells) => `${cells.map(cell).join(",")}\r\n`).join("");
}

/** @param {unknown} value */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return `${value}`;
  const text = typeof value === "string" ? value : JSON.stringify(value);
  // Ids, labels and metadata are others' data: spreadsheets must not take them for formulas.
  const harmless = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
}

/**
 * @param {string} name
 * @param {string} content
 * @param {string} type
 */
function save(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // once the browser has read it
}

export function installSelection() {
  search.listen(() => { if (selected.size) get("selection-compare").hidden = toCompare() === null; });
  browsing.listen(() => { if (selected.size) get("selection-compare").hidden = toCompare() === null; });
  get("selection-compare").addEventListener("click", () => {
    const pair = toCompare();
    if (pair) compare(pair);
  });
  get("selection-csv").addEventListener("click", () => save("selected.csv", toCsv(), "text/csv"));
  get("selection-json").addEventListener("click", () => save("selected.json", toJson(), "application/json"));
  get("selection-clear").addEventListener("click", () => {
    selected.clear();
    showSelection();
    get(browsing.value ? "browse-title" : "results-title").focus({ preventScroll: true });
  });
}
