// @ts-check
/**
 * The options of the search.
 *
 * @import { Options } from "./search.js"
 */

import { go, prepare, settle } from "./address.js";
import { get, input } from "./dom.js";
import { chosenLabels, showLabelChoice } from "./labels.js";
import { defaultOptions } from "./search.js";
import { labels, search } from "./state.js";
import { percent } from "./words.js";

const MS_BETWEEN_STEPS_OF_A_SLIDER = 150;

let sliding = 0;
/** The slider that made the latest step of the history: moved on, it makes no other. */
let moved = "";

function showOptions() {
  clearTimeout(sliding);
  moved = "";
  const { topK, minConfidence, deduplicate, eachVideo } = search.value;
  input("top-k").value = `${topK}`;
  input("confidence").value = `${minConfidence}`;
  input("deduplicate").checked = deduplicate;
  input("each-video").checked = eachVideo;
  if (!eachVideo) get("video-option").hidden = false;
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
  const wanted = search.value.labels;
  get("labels-option").hidden = (labels.value ?? []).length === 0 && wanted.length === 0;
  showLabelChoice("", wanted);
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
  get("each-video").addEventListener("change", () => {
    setOptions({ eachVideo: input("each-video").checked });
  });
  get("labels").addEventListener("change", (event) => {
    setOptions({ labels: chosenLabels(event, search.value.labels) });
  });
  get("label-search").addEventListener("input", showLabels);
  get("reset").addEventListener("click", () => setOptions(defaultOptions()));
  const options = /** @type {HTMLDetailsElement} */ (get("options"));
  const wide = matchMedia("(min-width: 800px)");
  const fold = () => { options.open = wide.matches; };
  wide.addEventListener("change", fold);
  fold();
}
