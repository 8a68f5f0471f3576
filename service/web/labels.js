// @ts-check
/** The choice of labels, of which an index may have thousands. */

import { element, get, input } from "./dom.js";
import { labels } from "./state.js";
import { closest } from "./words.js";

const MAX_LABELS_SHOWN = 24;
const MAX_MEANT = 3;

/**
 * Show the labels of the index as boxes to tick, those of what is typed where there are many.
 *
 * @param {string} prefix of the ids of its parts: `label-search`, `label-hint` and `labels`
 * @param {string[]} wanted the labels that are chosen
 */
export function showLabelChoice(prefix, wanted) {
  const all = labels.value ?? [];
  const box = get(`${prefix}labels`);
  get(`${prefix}label-search`).hidden = all.length <= MAX_LABELS_SHOWN;
  const typed = input(`${prefix}label-search`).value.trim().toLowerCase();
  const unchosen = all.filter(({ label }) => !wanted.includes(label));
  let others = unchosen.filter(({ label }) => label.toLowerCase().includes(typed));
  const unknown = others.length === 0 && typed !== "";
  if (unknown) {
    const meant = closest(typed, unchosen.map(({ label }) => label)).slice(0, MAX_MEANT);
    others = unchosen.filter(({ label }) => meant.includes(label));
  }
  get(`${prefix}label-hint`).hidden = !unknown;
  get(`${prefix}label-hint`).textContent = others.length ? "No such label. Did you mean:" : "No such label.";
  // Where all have room each keeps its place; else the chosen ones come first.
  const chosen = wanted.map((label) => all.find((one) => one.label === label) ?? { label, count: null });
  const few = all.length <= MAX_LABELS_SHOWN && chosen.every((one) => all.includes(one));
  const shown = few ? all : [...chosen, ...others.slice(0, MAX_LABELS_SHOWN)];
  const focused = document.activeElement instanceof HTMLInputElement ? document.activeElement : null;
  const again = focused && box.contains(focused) ? focused.value : null;
  box.replaceChildren(...shown.map(({ label, count }) => {
    const tick = element("input", { type: "checkbox", value: label, checked: wanted.includes(label) });
    const text = element("span", {}, label);
    const made = element("label", {}, tick, text);
    if (count !== null) text.append(element("small", { ariaHidden: "true" }, ` ${count.toLocaleString("en")}`));
    return made;
  }));
  if (again !== null) {
    [...box.querySelectorAll("input")].find((tick) => tick.value === again)?.focus();
  }
}

/**
 * The labels that are chosen after a box was ticked or not.
 *
 * @param {Event} event
 * @param {string[]} wanted those that were chosen before
 */
export function chosenLabels({ target }, wanted) {
  const tick = /** @type {HTMLInputElement} */ (target);
  const others = wanted.filter((label) => label !== tick.value);
  return tick.checked ? [...others, tick.value] : others;
}
