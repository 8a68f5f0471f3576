// @ts-check
/**
 * Two pictures side by side, how similar they are, and what that means in this index.
 *
 * @typedef {"a" | "b"} Side
 * @typedef {{score: number, share_of_same_kind_above: number | null,
 *   share_of_different_kinds_above: number | null, model: Model}} Comparison
 * @import { Model } from "./api.js"
 * @import { Indexed, Pair, Uploaded } from "./search.js"
 */

import { compare } from "./address.js";
import { request } from "./api.js";
import { announce, get, input, keepFocus, onPlainClick, setPicture } from "./dom.js";
import { closeNotice, notify } from "./notice.js";
import { modelKey, toExample } from "./search.js";
import { health, known, learn, pair } from "./state.js";
import { runAlone } from "./task.js";
import { nameOfFile, upload, uploaded } from "./uploads.js";
import { readable, share, titleOf, unlabelled } from "./words.js";

/** @type {Side[]} */
const SIDES = ["a", "b"];

/** @type {Side | null} The side whose button was pressed, and that the next picture is for. */
let wanted = null;
/** @type {Comparison | null} The answer that is shown. */
let answered = null;

/**
 * Take a picture to compare, for the side that was asked for, or the first that is empty.
 *
 * @param {Blob} file
 */
export function compareFile(file) {
  const { a, b } = pair.value ?? { a: null, b: null };
  const side = wanted ?? (a === null ? "a" : "b");
  wanted = null;
  return takeFile(file, side, { a, b });
}

/**
 * @param {Blob} file
 * @param {Side} side
 * @param {Pair} others
 * @returns {Promise<void>}
 */
function takeFile(file, side, others) {
  return runAlone(
    async (signal) => compare({ ...others, [side]: await upload(file, signal) }),
    `${nameOfFile(file)} could not be compared`,
    () => void takeFile(file, side, others),
  );
}

/** @param {Pair | null} next */
function showPair(next) {
  get("comparison").hidden = next === null;
  get("overlay-text").textContent = `Drop the picture to ${next ? "compare" : "search with"} it`;
  answered = null;
  if (next === null) return;
  document.title = "Compare two pictures · Image search";
  for (const side of SIDES) showSide(side, next[side]);
  get("verdict").hidden = true;
  const { a, b } = next;
  if (a && b) void findScore(a, b);
  keepFocus("comparison-title");
}

/**
 * @param {Side} side
 * @param {Indexed | Uploaded | null} image
 */
function showSide(side, image) {
  const picture = /** @type {HTMLImageElement} */ (get(`${side}-picture`));
  get(`${side}-empty`).hidden = image !== null;
  picture.hidden = image === null;
  const choose = image === null ? "Choose a picture" : "Another picture";
  get(`${side}-choose`).textContent = choose;
  get(`${side}-choose`).setAttribute("aria-label", `${choose}, ${side === "a" ? "the first" : "the second"}`);
  let name = "";
  if (image && "id" in image) {
    const shown = known.get(image.id);
    setPicture(picture, shown?.thumbnail);
    name = titleOf(shown ?? unlabelled(image.id));
    picture.title = readable(image.id);
    if (!shown) void learn(image.id, () => showSide(side, pair.value?.[side] ?? null));
  } else if (image) {
    setPicture(picture, uploaded.get(image.embedding)?.sent ?? image.preview);
    picture.title = "";
    name = "Your picture";
  }
  picture.alt = name;
  get(`${side}-name`).textContent = name;
}

/**
 * @param {Indexed | Uploaded} a
 * @param {Indexed | Uploaded} b
 */
function findScore(a, b) {
  return runAlone(
    async (signal) => {
      const json = { a: toExample(a), b: toExample(b) };
      /** @type {Comparison} */
      const answer = await request("compare", { json, signal });
      if ([a, b].some((image) => "model" in image && image.model !== modelKey(answer.model))) {
        notify(
          "This link was made with another model",
          "Its picture was embedded with another model than this index. Compare the picture itself.",
        );
        return;
      }
      closeNotice();
      showScore(answer);
    },
    "The pictures could not be compared",
    () => pair.set(pair.value),
  );
}

/** @param {Comparison} answer */
function showScore(answer) {
  answered = answer;
  // Of distances, less is more similar.
  const distance = health.value?.metric === "euclidean";
  get("score").textContent = `${distance ? "distance" : "score"} ${answer.score.toFixed(3)}`;
  const [same, different] = [answer.share_of_same_kind_above, answer.share_of_different_kinds_above]
    .map((above) => (above === null ? null : distance ? 1 - above : above));
  get("meaning").hidden = same === null || different === null;
  get("meaningless").hidden = !get("meaning").hidden;
  let told = get("meaningless").textContent ?? "";
  if (same !== null && different !== null) {
    showShare("same", same);
    showShare("different", different);
    told = `${share(same)} of the pairs of one kind and ${share(different)} of the pairs of different kinds are more similar.`;
  }
  get("verdict").hidden = false;
  announce(`${get("score").textContent}. ${told}`);
}

/**
 * @param {"same" | "different"} kinds
 * @param {number} above
 */
function showShare(kinds, above) {
  get(`${kinds}-share`).textContent = share(above);
  get(`${kinds}-bar`).style.setProperty("--share", `${above}`);
}

export function installComparison() {
  pair.listen(showPair);
  for (const side of SIDES) {
    get(`${side}-choose`).addEventListener("click", () => {
      wanted = side;
      input("file").click();
    });
  }
  for (const id of ["compare-link", "compare-start"]) {
    onPlainClick(get(id), () => compare({ a: null, b: null }));
  }
  health.listen((now, before) => {
    if (answered && now?.metric !== before?.metric) showScore(answered);
  });
}
