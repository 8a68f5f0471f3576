// @ts-check
/**
 * Matches that were selected, over all searches of this tab, and the list of them.
 *
 * @import { Match } from "./api.js"
 */

import { compare } from "./address.js";
import { announce, element, get } from "./dom.js";
import { search } from "./state.js";
import { nameOf, readable } from "./words.js";

/** @type {Map<string, Match>} In the order in which they were selected. */
const selected = new Map();

/**
 * The button that selects a match.
 *
 * @param {Match} match
 */
export function selectButton(match) {
  const button = element("button", { type: "button", className: "select", title: "Select" }, "✓");
  button.dataset.id = match.id;
  button.setAttribute("aria-label", `Select ${nameOf(match)}`);
  button.setAttribute("aria-pressed", `${selected.has(match.id)}`);
  button.addEventListener("click", () => {
    if (!selected.delete(match.id)) selected.set(match.id, match);
    showSelection();
  });
  return button;
}

function showSelection() {
  for (const button of get("matches").querySelectorAll("button.select")) {
    const { id } = /** @type {HTMLElement} */ (button).dataset;
    button.setAttribute("aria-pressed", `${selected.has(id ?? "")}`);
  }
  get("matches").classList.toggle("selecting", selected.size > 0);
  get("selection").hidden = selected.size === 0;
  get("selection-compare").hidden = toCompare() === null;
  get("selection-count").textContent = `${selected.size} selected`;
  announce(`${selected.size} selected`);
}

/** Two that are selected; or one, and the picture that was searched with. */
function toCompare() {
  const [first, second, ...others] = [...selected.keys()].map((id) => ({ id }));
  const { query } = search.value;
  if (first && second && others.length === 0) return { a: first, b: second };
  return first && !second && query ? { a: query, b: first } : null;
}

/** @param {Match} match */
function row({ id, label, score, confidence, metadata }) {
  return { id, name: readable(id), label, score, confidence, metadata };
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
  get("selection-compare").addEventListener("click", () => {
    const pair = toCompare();
    if (pair) compare(pair);
  });
  get("selection-csv").addEventListener("click", () => save("matches.csv", toCsv(), "text/csv"));
  get("selection-json").addEventListener("click", () => save("matches.json", toJson(), "application/json"));
  get("selection-clear").addEventListener("click", () => {
    selected.clear();
    showSelection();
    get("results-title").focus({ preventScroll: true });
  });
}
