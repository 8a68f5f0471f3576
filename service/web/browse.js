// @ts-check
/**
 * The images of the index without a picture to search with: by label, date and words, in an order.
 *
 * @import { IndexedImage } from "./api.js"
 * @import { Browse } from "./search.js"
 */

import { arrive, browse, go } from "./address.js";
import { request } from "./api.js";
import { announce, element, get, input, isNear, keepFocus, onPlainClick, thumbnail } from "./dom.js";
import { chosenLabels, showLabelChoice } from "./labels.js";
import { closeNotice } from "./notice.js";
import { emptyBrowse, toFragment, toListing, withQuery } from "./search.js";
import { selectButton } from "./selection.js";
import { browsing, health, known, labels, search } from "./state.js";
import { runAlone } from "./task.js";
import { viewButton } from "./viewer.js";
import { day, facts, nameOf, readable, titleOf } from "./words.js";

const MS_BEFORE_WORDS_COUNT = 300;
const SMALL_SIDE = 160;
const FIELDS = ["sort", "from", "to"];

/** What is shown, as a query string; another one begins anew. */
let shown = "";
/** @type {string | null} Leads to the next images; null where there are no more. */
let cursor = null;
let loading = false;
let typing = 0;

/** @param {Browse | null} next */
function showBrowse(next) {
  get("browse").hidden = next === null;
  if (next === null) return;
  document.title = "Browse · Image search";
  clearTimeout(typing);
  if (document.activeElement !== get("words")) input("words").value = next.words;
  for (const field of FIELDS) {
    input(`browse-${field}`).value = next[/** @type {"sort" | "from" | "to"} */ (field)];
  }
  showChoice();
  keepFocus("browse-title");
  const wanted = `${toListing(next)}`;
  if (wanted === shown) {
    // As after going back: it is still there.
    get("more").hidden = cursor === null;
    arrive();
    return;
  }
  shown = wanted;
  cursor = null;
  get("images").replaceChildren();
  get("images").classList.remove("large");
  get("browse-none").hidden = true;
  void more();
}

function showChoice() {
  const wanted = browsing.value?.labels ?? [];
  get("browse-labels-option").hidden = (labels.value ?? []).length === 0 && wanted.length === 0;
  showLabelChoice("browse-", wanted);
}

/** Fetch and show the next images. */
function more() {
  const now = browsing.value;
  if (now === null) return undefined;
  const wanted = shown;
  const after = cursor;
  loading = true;
  get("more").hidden = true;
  return runAlone(
    async (signal) => {
      const fields = toListing(now);
      if (after !== null) fields.append("cursor", after);
      /** @type {{images: IndexedImage[], cursor: string | null}} */
      const answer = await request(`images?${fields}`, { signal }).catch((error) => {
        if (after === null && wanted === shown) shown = "";
        throw error;
      });
      if (wanted !== shown) return;
      closeNotice();
      cursor = answer.cursor;
      showImages(answer.images);
    },
    "The images could not be listed",
    () => void more(),
  ).finally(() => { loading = false; });
}

/** @param {IndexedImage[]} images */
function showImages(images) {
  for (const image of images) known.set(image.id, image);
  get("images").append(...images.map(tile));
  const count = get("images").childElementCount;
  const number = count.toLocaleString("en");
  const all = cursor === null ? null : total();
  const rest = cursor === null ? "" : " so far";
  const told = all !== null ? `${number} of ${all.toLocaleString("en")} images`
    : count === 1 ? "1 image" : `${number} images${rest}`;
  get("browse-count").textContent = count ? told : "";
  get("browse-none").hidden = count > 0;
  get("more").hidden = cursor === null;
  announce(count ? told : "No images");
  arrive();
  if (cursor !== null && isNear(get("more"))) requestAnimationFrame(() => { if (!loading) void more(); });
}

/** How many images there are to browse; null if only listing them all would tell. */
function total() {
  const now = browsing.value ?? emptyBrowse();
  if (now.words || now.from || now.to) return null;
  if (now.labels.length === 0) return health.value?.count ?? null;
  const counts = now.labels.map((label) => labels.value?.find((one) => one.label === label)?.count ?? null);
  return counts.reduce((sum, count) => (sum === null || count === null ? null : sum + count), 0);
}

/** @param {IndexedImage} image */
function tile(image) {
  const found = () => withQuery({ id: image.id }, search.value);
  const link = element("a", { className: "picture", href: toFragment(found()), draggable: false });
  link.setAttribute("aria-label", `More like ${nameOf(image)}`);
  const picture = thumbnail(image.thumbnail, titleOf(image));
  picture.addEventListener("load", enlarge);
  link.append(picture);
  onPlainClick(link, () => go(found()));
  const name = readable(image.id);
  const taken = day(image.metadata?.taken);
  const head = element("p", { className: "line" }, element("strong", {}, titleOf(image)));
  if (taken) head.append(element("time", { dateTime: taken }, taken));
  const id = element("p", { className: "id", title: [name, ...facts(image.metadata)].join("\n") }, element("bdi", {}, name));
  id.hidden = image.label === null; // it is the headline
  const { video, time } = image.metadata ?? {};
  const viewed = {
    ...image,
    video: typeof video === "string" ? video : null,
    time: typeof time === "number" ? time : null,
  };
  const view = viewButton(viewed, () => [[], 0]);
  return element("li", { className: "match" }, link, view, selectButton(image), head, id);
}

/**
 * Give large thumbnails the room to be seen as they are.
 *
 * @param {Event} event
 */
function enlarge({ target }) {
  const { naturalWidth, naturalHeight } = /** @type {HTMLImageElement} */ (target);
  if (Math.max(naturalWidth, naturalHeight) > SMALL_SIDE) get("images").classList.add("large");
}

/**
 * @param {Partial<Browse>} options
 * @param {{replace: boolean}} [step]
 */
function setOptions(options, step) {
  browse({ ...(browsing.value ?? emptyBrowse()), ...options }, step);
}

export function installBrowse() {
  browsing.listen(showBrowse);
  labels.listen(() => { if (browsing.value) showChoice(); });
  health.listen((now) => {
    // Pinecone has neither; see docs/reference/metadata.md.
    get("words-option").hidden = get("sort-option").hidden = now?.store === "pinecone";
  });
  for (const id of ["browse-link", "browse-start"]) {
    onPlainClick(get(id), () => browse(emptyBrowse()));
  }
  input("words").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      setOptions({ words: input("words").value.trim() }, { replace: browsing.value?.words !== "" });
    }, MS_BEFORE_WORDS_COUNT);
  });
  for (const field of FIELDS) {
    get(`browse-${field}`).addEventListener("change", () => {
      setOptions({ [field]: input(`browse-${field}`).value });
    });
  }
  get("browse-labels").addEventListener("change", (event) => {
    setOptions({ labels: chosenLabels(event, browsing.value?.labels ?? []) });
  });
  get("browse-form").addEventListener("submit", (event) => event.preventDefault());
  get("browse-label-search").addEventListener("input", showChoice);
  get("browse-reset").addEventListener("click", () => {
    input("words").value = "";
    browse(emptyBrowse());
  });
  get("more").addEventListener("click", () => void more());
  new IntersectionObserver(([seen]) => {
    if (seen.isIntersecting && cursor !== null && !loading) void more();
  }, { rootMargin: "800px" }).observe(get("more"));
}
