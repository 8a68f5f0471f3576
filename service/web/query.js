// @ts-check
/**
 * The query panel: the picture that is searched with, and the examples beside it.
 *
 * @import { IndexedImage } from "./api.js"
 */

import { request } from "./api.js";
import { go } from "./address.js";
import { chooseAPart } from "./crop.js";
import { element, get, input, setPicture, thumbnail } from "./dom.js";
import { prepare } from "./pictures.js";
import { encodeEmbedding, isEmpty, modelKey, withQuery } from "./search.js";
import { known, learn, search } from "./state.js";
import { runAlone } from "./task.js";
import { nameOf, readable, titleOf } from "./words.js";

/**
 * The addresses of the pictures that were uploaded, by embedding: what was searched with, and the
 * whole picture that it is a part of, or itself.
 *
 * @type {Map<string, {searched: string, whole: string}>}
 */
const uploaded = new Map();

/**
 * @param {Blob} file
 * @param {string | null} [whole] address of the picture that it is a part of
 */
export function searchFile(file, whole = null) {
  const name = file instanceof File && file.name ? `“${file.name}”` : "The picture";
  return runAlone(
    async (signal) => {
      const { upload, preview } = await prepare(file);
      signal.throwIfAborted();
      const form = new FormData();
      form.append("image", upload, "picture");
      const answer = await request("embeddings", { form, signal });
      const embedding = encodeEmbedding(answer.embedding);
      if (preview) {
        const searched = URL.createObjectURL(upload);
        uploaded.set(embedding, { searched, whole: whole ?? URL.createObjectURL(file) });
      }
      go(withQuery({ embedding, model: modelKey(answer.model), preview }, search.value));
    },
    `${name} could not be searched for`,
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
    setPicture(picture, uploaded.get(query.embedding)?.searched ?? query.preview);
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

/**
 * An image of which only the id is known yet.
 *
 * @param {string} id
 * @returns {IndexedImage}
 */
function unlabelled(id) {
  return { id, label: null, thumbnail: null };
}

export function installQuery() {
  search.listen(showQuery);
  get("crop-open").addEventListener("click", () => {
    const whole = wholePicture();
    if (whole) chooseAPart(whole, (part) => void searchFile(part, whole));
  });
}
