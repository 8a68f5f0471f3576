// @ts-check
/**
 * A match seen large: a video from the moment that was found, or the original of a photo, where the
 * service shows originals; the frame itself where it does not.
 *
 * @import { IndexedImage, Moment } from "./api.js"
 */

import { go } from "./address.js";
import { originalPath, originalProblem, fetchOriginal, hasKey } from "./api.js";
import { announce, element, get, setPicture } from "./dom.js";
import { withQuery } from "./search.js";
import { health, known, learn, search } from "./state.js";
import { clock, nameOf, readable, sentence, titleOf } from "./words.js";

/**
 * @typedef {IndexedImage & {video?: string | null, time?: number | null}} Viewed
 * @typedef {"previous" | "next"} Direction
 */

/** @type {Direction[]} */
const DIRECTIONS = ["previous", "next"];

/** @type {Viewed | null} The image that is seen. */
let viewed = null;
/** @type {HTMLElement | null} The button that opened it. */
let opener = null;
/** @type {Moment[]} The moments of its video, by time. */
let moments = [];
/** The moment that is chosen, by its place. */
let current = 0;
/** Whether the original was already asked for with the key. */
let retried = false;

/**
 * A button that opens an image: its time in the video, or a sign, which is only to be seen where the
 * service shows originals.
 *
 * @param {Viewed} image
 * @param {() => [Moment[], number]} chosen the moments of its video, and which one is shown
 */
export function viewButton(image, chosen) {
  const kind = typeof image.video === "string" ? "view" : "view photo";
  const button = element("button", { type: "button", className: kind });
  button.addEventListener("click", () => {
    opener = button;
    view(image, ...chosen());
  });
  labelViewButton(button, image, image.time ?? null);
  return button;
}

/**
 * @param {HTMLElement} button
 * @param {Viewed} image
 * @param {number | null} time
 */
export function labelViewButton(button, image, time) {
  const isVideo = typeof image.video === "string";
  const at = time === null ? "" : clock(time);
  button.textContent = isVideo ? `▶ ${at}`.trim() : "⤢";
  const name = nameOf({ id: image.video ?? image.id, label: image.label });
  button.setAttribute("aria-label", isVideo ? `Play ${name}${at && ` at ${at}`}` : `See ${name} large`);
  button.title = isVideo ? "Play it from here" : "See it large";
}

/**
 * @param {Viewed} image
 * @param {Moment[]} others
 * @param {number} which
 */
function view(image, others, which) {
  clear();
  viewed = image;
  moments = others;
  current = which;
  retried = false;
  const file = image.video ?? image.id;
  get("viewer-title").textContent = titleOf({ id: file, label: image.label });
  get("viewer-path").textContent = readable(file);
  get("viewer-copy").textContent = "Copy the path";
  get("viewer-problem").hidden = true;
  get("viewer-moments").hidden = moments.length < 2;
  get("viewer-moments").replaceChildren(...moments.map(chip));
  showThumbnail();
  for (const direction of DIRECTIONS) {
    const button = /** @type {HTMLButtonElement} */ (get(`viewer-${direction}`));
    const ends = neighbour(direction) === null;
    if (ends && document.activeElement === button) get("viewer-close").focus();
    button.disabled = ends;
  }
  if (!dialog().open) dialog().showModal();
  if (health.value?.originals) load(originalPath(file));
  markMoment();
}

/**
 * The button that opens the image before or after this one, in the list that both are in.
 *
 * @param {Direction} direction
 * @returns {HTMLElement | null}
 */
function neighbour(direction) {
  const item = opener?.closest("li");
  const other = direction === "next" ? item?.nextElementSibling : item?.previousElementSibling;
  return other?.querySelector("button.view") ?? null;
}

/** @param {KeyboardEvent} event */
function turn(event) {
  const direction = event.key === "ArrowRight" ? "next" : event.key === "ArrowLeft" ? "previous" : null;
  // Within a player, these keys go through the video.
  if (!direction || event.ctrlKey || event.metaKey || event.altKey || event.target === player()) return;
  event.preventDefault();
  neighbour(direction)?.click();
}

/** @param {string} address */
function load(address) {
  if (viewed && typeof viewed.video === "string") {
    player().src = address;
    player().hidden = false;
    picture().hidden = true;
  } else {
    picture().src = address;
  }
}

/** The frame that was found, until there is more, or where there is none. */
function showThumbnail() {
  player().hidden = true;
  picture().hidden = false;
  if (viewed === null) return;
  const { id } = moments[current] ?? viewed;
  picture().alt = titleOf({ id: viewed.video ?? viewed.id, label: viewed.label });
  setPicture(picture(), known.get(id)?.thumbnail ?? (id === viewed.id ? viewed.thumbnail : null));
  if (!known.has(id)) void learn(id, () => { if (player().hidden) showThumbnail(); });
}

/**
 * @param {Moment} moment
 * @param {number} place
 */
function chip({ time }, place) {
  const button = element("button", { type: "button" }, clock(time ?? 0));
  button.setAttribute("aria-label", `Moment at ${clock(time ?? 0)}`);
  button.addEventListener("click", () => {
    current = place;
    markMoment();
    if (player().hidden) return showThumbnail();
    seek();
    void player().play().catch(() => {});
  });
  return element("li", {}, button);
}

function markMoment() {
  for (const [place, item] of [...get("viewer-moments").children].entries()) {
    item.firstElementChild?.setAttribute("aria-pressed", `${place === current}`);
  }
}

function seek() {
  const time = moments[current]?.time ?? viewed?.time;
  if (typeof time === "number") player().currentTime = time;
}

/** What the browser could not load is asked for with the key, or told of. */
async function explain() {
  if (viewed === null || !health.value?.originals) return;
  const image = viewed;
  const path = originalPath(image.video ?? image.id);
  if (hasKey() && !retried) {
    retried = true;
    const content = await fetchOriginal(path);
    if (content && viewed === image) load(URL.createObjectURL(content));
    if (content) return;
  }
  const problem = await originalProblem(path);
  if (viewed !== image) return;
  showThumbnail();
  get("viewer-problem").textContent = problem
    ? sentence(problem)
    : "This browser cannot show a file of this kind.";
  get("viewer-problem").hidden = false;
}

function close() {
  clear();
  opener?.focus();
}

function clear() {
  viewed = null;
  for (const shown of [player(), picture()]) {
    if (shown.src.startsWith("blob:")) URL.revokeObjectURL(shown.src);
    shown.removeAttribute("src");
  }
  player().load(); // nothing is loaded any longer
}

async function copyPath() {
  const path = get("viewer-path").textContent ?? "";
  try {
    await navigator.clipboard.writeText(path);
    get("viewer-copy").textContent = "Copied";
    announce("The path is copied.");
  } catch {
    // Browsers allow it only over HTTPS and on this machine.
    getSelection()?.selectAllChildren(get("viewer-path"));
  }
}

function dialog() {
  return /** @type {HTMLDialogElement} */ (get("viewer"));
}

function player() {
  return /** @type {HTMLVideoElement} */ (get("viewer-video"));
}

function picture() {
  return /** @type {HTMLImageElement} */ (get("viewer-picture"));
}

export function installViewer() {
  health.listen((now) => document.body.classList.toggle("originals", now?.originals === true));
  player().addEventListener("loadedmetadata", () => {
    seek();
    void player().play().catch(() => {}); // not without a gesture: there is a button
  });
  player().addEventListener("error", () => { if (player().hasAttribute("src")) void explain(); });
  picture().addEventListener("error", () => { if (picture().hasAttribute("src")) void explain(); });
  dialog().addEventListener("close", close);
  dialog().addEventListener("click", (event) => { if (event.target === dialog()) dialog().close(); });
  get("viewer-close").addEventListener("click", () => dialog().close());
  for (const direction of DIRECTIONS) {
    get(`viewer-${direction}`).addEventListener("click", () => neighbour(direction)?.click());
  }
  dialog().addEventListener("keydown", turn);
  get("viewer-copy").addEventListener("click", () => void copyPath());
  get("viewer-more").addEventListener("click", () => {
    const id = moments[current]?.id ?? viewed?.id;
    dialog().close();
    if (id !== undefined) go(withQuery({ id }, search.value));
  });
}
