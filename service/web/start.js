// @ts-check
/**
 * Where one begins: pictures to try, those of the page and some of the index.
 *
 * @import { IndexedImage, SearchResponse } from "./api.js"
 */

import { ProblemError, request } from "./api.js";
import { arrive, go } from "./address.js";
import { element, get, keepFocus, onPlainClick, thumbnail } from "./dom.js";
import { fail } from "./notice.js";
import { emptySearch, isEmpty, randomEmbedding, toFragment, withQuery } from "./search.js";
import { browsing, health, known, labels, pair, search } from "./state.js";
import { nameOf, titleOf } from "./words.js";

const IMAGES_TO_START_WITH = 10;

function showStart() {
  get("start").hidden = !isEmpty(search.value) || pair.value !== null || browsing.value !== null;
  if (get("start").hidden) return;
  keepFocus("start-title");
  arrive();
}

/** Fetch the labels of the index and some of its images, unless they are at hand. */
export function needIndex() {
  if (labels.value === null) void loadIndex();
}

async function loadIndex() {
  try {
    labels.set((await request("labels")).labels);
    orderExamples();
    await showSome();
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error;
    labels.prepare(null); // those that are shown stay
    if (error.status === 401 || isEmpty(search.value)) fail("The index could not be read", error);
  }
}

/** Fetch the labels again: there are other images now. */
export async function refreshLabels() {
  if (get("some-section").hidden) return loadIndex();
  try {
    labels.set((await request("labels")).labels);
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error; // those that are shown stay
  }
}

/** Where the index knows none of the kinds that the examples show, its own images come first. */
function orderExamples() {
  const kinds = [...get("examples").querySelectorAll("img")].map(({ alt }) => alt);
  if (labels.value?.some(({ label }) => kinds.includes(label))) return;
  get("start").append(get("examples-section"));
}

/** Some images of the index, of as many labels as possible. */
async function showSome() {
  const wanted = (labels.value ?? []).map(({ label }) => ({ label, order: Math.random() }))
    .sort((a, b) => a.order - b.order)
    .slice(0, IMAGES_TO_START_WITH)
    .map(({ label }) => [label]);
  if (wanted.length === 0) wanted.push([]);
  const top_k = Math.ceil(IMAGES_TO_START_WITH / wanted.length);
  /** @type {SearchResponse[]} */
  const answers = await Promise.all(wanted.map((only) => {
    return request("query", { json: { embedding: randomEmbedding(), labels: only, top_k } });
  }));
  const images = answers.flatMap(({ matches }) => matches).slice(0, IMAGES_TO_START_WITH);
  get("some").replaceChildren(...images.map(offer));
  get("some-section").hidden = images.length === 0;
}

/** @param {IndexedImage} image */
function offer({ id, label, thumbnail: source }) {
  const image = { id, label, thumbnail: source };
  known.set(id, image);
  const name = nameOf(image);
  const chosen = () => withQuery({ id }, search.value);
  const link = element("a", { href: toFragment(chosen()), title: name, draggable: false });
  link.setAttribute("aria-label", name);
  link.append(thumbnail(source, titleOf(image)));
  onPlainClick(link, () => go(chosen()));
  return element("li", {}, link);
}

export function installStart() {
  search.listen(showStart);
  health.listen(needIndex);
  get("shuffle").addEventListener("click", () => void loadIndex());
  onPlainClick(get("home"), () => {
    if (get("start").hidden) go(emptySearch());
  });
}
