// @ts-check
/**
 * The options of the search.
 *
 * @import { Options } from "./search.js"
 */

import { go, prepare, settle } from "./address.js";
import { element, get, input } from "./dom.js";
import { defaultOptions } from "./search.js";
import { labels, search } from "./state.js";
import { closest, percent } from "./words.js";

const MS_BETWEEN_STEPS_OF_A_SLIDER = 150;
const MAX_LABELS_SHOWN = 24;
const MAX_MEANT = 3;

let sliding = 0;
/** The slider that made the latest step of the history: moved on, it makes no other. */
let moved = "";

function showOptions() {
  clearTimeout(sliding);
  moved = "";
  const { topK, minConfidence, deduplicate } = search.value;
  input("top-k").value = `${topK}`;
  input("confidence").value = `${minConfidence}`;
  input("deduplicate").checked = deduplicate;
  if (minConfidence) get("confidence-option").hidden = false;
  showOptionValues();
  showLabels();
}

function showOptionValues() {
  get("top-k-value").textContent = input("top-k").value;
  const least = Number(input("confidence").value);
  get("confidence-value").textContent = least ? `at least ${percent(least)}` : "any";
  input("confidence").setAttribute("aria-valuetext", get("confidence-value").textContent ?? "");
}

function showLabels() {
  const all = labels.value ?? [];
  const wanted = search.value.labels;
  get("labels-option").hidden = all.length === 0 && wanted.length === 0;
  get("label-search").hidden = all.length <= MAX_LABELS_SHOWN;
  const typed = input("label-search").value.trim().toLowerCase();
  const unchosen = all.filter(({ label }) => !wanted.includes(label));
  let others = unchosen.filter(({ label }) => label.toLowerCase().includes(typed));
  const unknown = others.length === 0 && typed !== "";
  if (unknown) {
    const meant = closest(typed, unchosen.map(({ label }) => label)).slice(0, MAX_MEANT);
    others = unchosen.filter(({ label }) => meant.includes(label));
  }
  get("label-hint").hidden = !unknown;
  get("label-hint").textContent = others.length ? "No such label. Did you mean:" : "No such label.";
  // Where all have room each keeps its place; else the chosen ones come first.
  const chosen = wanted.map((label) => all.find((one) => one.label === label) ?? { label, count: null });
  const few = all.length <= MAX_LABELS_SHOWN && chosen.every((one) => all.includes(one));
  const shown = few ? all : [...chosen, ...others.slice(0, MAX_LABELS_SHOWN)];
  const focused = document.activeElement instanceof HTMLInputElement ? document.activeElement : null;
  const again = focused?.closest("#labels") ? focused.value : null;
  get("labels").replaceChildren(...shown.map(({ label, count }) => {
    const box = element("input", { type: "checkbox", value: label, checked: wanted.includes(label) });
    const text = element("span", {}, label);
    const made = element("label", {}, box, text);
    if (count !== null) text.append(element("small", { ariaHidden: "true" }, ` ${count.toLocaleString("en")}`));
    return made;
  }));
  if (again !== null) {
    [...get("labels").querySelectorAll("input")].find((box) => box.value === again)?.focus();
  }
}

/** @param {Partial<Options>} options */
function setOptions(options) {
  go({ ...search.value, ...options });
}

export function installOptions() {
  search.listen(showOptions);
  labels.listen(showLabels);
  for (const id of ["top-k", "confidence"]) {
    get(id).addEventListener("input", () => {
      showOptionValues();
      const topK = Number(input("top-k").value);
      const minConfidence = Number(input("confidence").value);
      prepare({ ...search.value, topK, minConfidence }, { replace: moved === id });
      clearTimeout(sliding);
      sliding = setTimeout(() => {
        settle();
        moved = id;
      }, MS_BETWEEN_STEPS_OF_A_SLIDER);
    });
  }
  get("deduplicate").addEventListener("change", () => {
    setOptions({ deduplicate: input("deduplicate").checked });
  });
  get("labels").addEventListener("change", (event) => {
    const box = /** @type {HTMLInputElement} */ (event.target);
    const others = search.value.labels.filter((label) => label !== box.value);
    setOptions({ labels: box.checked ? [...others, box.value] : others });
  });
  get("label-search").addEventListener("input", showLabels);
  get("reset").addEventListener("click", () => setOptions(defaultOptions()));
  const options = /** @type {HTMLDetailsElement} */ (get("options"));
  const wide = matchMedia("(min-width: 800px)");
  const fold = () => { options.open = wide.matches; };
  wide.addEventListener("change", fold);
  fold();
}
