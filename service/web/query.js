// @ts-check
/** The query panel: the picture that is searched with, and the examples beside it. */

import { go } from "./address.js";
import { chooseAPart } from "./crop.js";
import { element, get, input, setPicture, thumbnail } from "./dom.js";
import { isEmpty, withQuery } from "./search.js";
import { known, learn, search } from "./state.js";
import { runAlone } from "./task.js";
import { nameOfFile, upload, uploaded } from "./uploads.js";
import { nameOf, readable, titleOf, unlabelled } from "./words.js";

/**
 * @param {Blob} file
 * @param {string | null} [whole] address of the picture that it is a part of
 */
export function searchFile(file, whole = null) {
  return runAlone(
    async (signal) => go(withQuery(await upload(file, signal, whole), search.value)),
    `${nameOfFile(file)} could not be searched for`,
    () => void searchFile(file, whole),
  );
}

function showQuery() {
  if (isEmpty(search.value)) {
    document.title = "Image search";
    return;
  }
  const { query, positive, negative } = search.value;
  get("query-frame").hidden = query === null;
  const picture = /** @type {HTMLImageElement} */ (get("query-picture"));
  get("crop-open").hidden = wholePicture() === null;
  if (query && "embedding" in query) {
    setPicture(picture, uploaded.get(query.embedding)?.sent ?? query.preview);
    nameQuery("Your picture", "");
  } else if (query) {
    const image = known.get(query.id);
    setPicture(picture, image?.thumbnail);
    nameQuery(titleOf(image ?? unlabelled(query.id)), query.id);
    if (!image) void learn(query.id, showQuery);
  } else {
    nameQuery("Examples", "");
  }
  showExamples("positive", positive);
  showExamples("negative", negative);
}

/** The address of the picture of which a part can be chosen, if it is at hand. */
function wholePicture() {
  const { query } = search.value;
  if (query === null) return null;
  if ("id" in query) return known.get(query.id)?.thumbnail ?? null;
  return uploaded.get(query.embedding)?.whole ?? null;
}

/**
 * @param {string} label
 * @param {string} id
 */
function nameQuery(label, id) {
  get("query-label").textContent = label;
  get("query-id").textContent = readable(id) === label ? "" : readable(id);
  input("query-picture").alt = label;
  document.title = `${label} · Image search`;
}

/**
 * @param {"positive" | "negative"} sign
 * @param {string[]} ids
 */
function showExamples(sign, ids) {
  get(`${sign}-group`).hidden = ids.length === 0;
  get(sign).replaceChildren(...ids.map((id) => {
    const image = known.get(id);
    if (!image) void learn(id, () => showExamples(sign, search.value[sign]));
    const shown = image ?? unlabelled(id);
    const remove = element("button", { type: "button", title: `Remove ${readable(id)}` });
    remove.setAttribute("aria-label", `Remove the ${sign} example ${nameOf(shown)}`);
    remove.append(thumbnail(shown.thumbnail, titleOf(shown)));
    remove.addEventListener("click", () => {
      const others = search.value[sign].filter((other) => other !== id);
      go({ ...search.value, [sign]: others });
    });
    return element("li", {}, remove);
  }));
}

export function installQuery() {
  search.listen(showQuery);
  get("crop-open").addEventListener("click", () => {
    const whole = wholePicture();
    if (whole) chooseAPart(whole, (part) => void searchFile(part, whole));
  });
}
