// @ts-check
/**
 * The choice of a part of a picture to search with: a frame that is dragged, or moved by keys.
 *
 * @typedef {{left: number, top: number, width: number, height: number}} Frame Shares of the
 *   picture's width and height, 0 to 1.
 */

import { get } from "./dom.js";
import { cut } from "./pictures.js";

const LEAST = 0.04;
const STEP = 0.02;
/** @type {Frame} */
const WHOLE = { left: 0, top: 0, width: 1, height: 1 };
/** @type {Frame} */
const MIDDLE = { left: 0.2, top: 0.2, width: 0.6, height: 0.6 };
/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** @type {Frame} */
let frame = MIDDLE;
/** @type {(part: Blob) => void} */
let use = () => {};

/**
 * Ask for a part of a picture.
 *
 * @param {string} source address of the picture
 * @param {(part: Blob) => void} then what to do with the part, as a picture
 */
export function chooseAPart(source, then) {
  use = then;
  picture().src = source;
  showFrame(MIDDLE);
  dialog().showModal();
  get("crop-frame").focus();
}

function dialog() {
  return /** @type {HTMLDialogElement} */ (get("crop"));
}

function picture() {
  return /** @type {HTMLImageElement} */ (get("crop-picture"));
}

/** @param {Frame} next */
function showFrame(next) {
  const width = within(next.width, LEAST, 1);
  const height = within(next.height, LEAST, 1);
  frame = { left: within(next.left, 0, 1 - width), top: within(next.top, 0, 1 - height), width, height };
  for (const [name, share] of Object.entries(frame)) {
    get("crop-frame").style.setProperty(name, `${100 * share}%`);
  }
  get("crop-size").textContent = `${round(frame.width)} × ${round(frame.height)} % of the picture, ${round(frame.left)} % from the left, ${round(frame.top)} % from the top`;
}

/**
 * @param {number} value
 * @param {number} least
 * @param {number} most
 */
function within(value, least, most) {
  return Math.min(most, Math.max(least, value));
}

/** @param {number} share */
function round(share) {
  return Math.round(100 * share);
}

/** @param {PointerEvent} event */
function place(event) {
  const area = get("crop-area").getBoundingClientRect();
  return {
    x: within((event.clientX - area.left) / area.width, 0, 1),
    y: within((event.clientY - area.top) / area.height, 0, 1),
  };
}

/**
 * The frame between two corners.
 *
 * @param {{x: number, y: number}} one
 * @param {{x: number, y: number}} other
 * @returns {Frame}
 */
function between(one, other) {
  return {
    left: Math.min(one.x, other.x),
    top: Math.min(one.y, other.y),
    width: Math.abs(one.x - other.x),
    height: Math.abs(one.y - other.y),
  };
}

/** @param {PointerEvent} down */
function drag(down) {
  if (down.button !== 0) return;
  down.preventDefault(); // no selection of text
  get("crop-frame").focus();
  const area = get("crop-area");
  const target = /** @type {HTMLElement} */ (down.target);
  const from = place(down);
  const before = frame;
  const { corner } = target.dataset;
  // Of a corner that is dragged, the opposite one stays.
  const anchor = corner ? {
    x: before.left + (corner.includes("w") ? before.width : 0),
    y: before.top + (corner.includes("n") ? before.height : 0),
  } : from;
  const moves = !corner && target.closest("#crop-frame");

  /** @param {PointerEvent} event */
  const follow = (event) => {
    const to = place(event);
    if (moves) showFrame({ ...before, left: before.left + to.x - from.x, top: before.top + to.y - from.y });
    else showFrame(between(anchor, to));
  };
  /** @param {PointerEvent} event */
  const end = (event) => {
    area.removeEventListener("pointermove", follow);
    area.removeEventListener("pointerup", end);
    area.removeEventListener("pointercancel", end);
    const drawn = between(from, place(event));
    // A click is no frame.
    if (!moves && !corner && Math.max(drawn.width, drawn.height) < LEAST) showFrame(before);
  };
  area.setPointerCapture(down.pointerId);
  area.addEventListener("pointermove", follow);
  area.addEventListener("pointerup", end);
  area.addEventListener("pointercancel", end);
}

/** @param {KeyboardEvent} event */
function steer(event) {
  const arrow = ARROWS[event.key];
  if (!arrow || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault(); // no scrolling
  const [right, down] = arrow.map((direction) => direction * STEP);
  const { left, top, width, height } = frame;
  if (!event.shiftKey) return showFrame({ ...frame, left: left + right, top: top + down });
  // The edge that moves stops at the picture's.
  return showFrame({
    ...frame,
    width: Math.min(width + right, 1 - left),
    height: Math.min(height + down, 1 - top),
  });
}

async function search() {
  const part = await cut(picture(), frame);
  dialog().close();
  use(part);
}

export function installCrop() {
  picture().addEventListener("load", () => {
    const { naturalWidth, naturalHeight } = picture();
    get("crop-area").style.setProperty("--ratio", `${naturalWidth / naturalHeight}`);
  });
  get("crop-area").addEventListener("pointerdown", drag);
  get("crop-frame").addEventListener("keydown", steer);
  get("crop-frame").addEventListener("click", (event) => {
    if (event.detail === 0) void search(); // Enter or Space, not a click
  });
  get("crop-search").addEventListener("click", () => void search());
  get("crop-whole").addEventListener("click", () => showFrame(WHOLE));
  get("crop-cancel").addEventListener("click", () => dialog().close());
}
