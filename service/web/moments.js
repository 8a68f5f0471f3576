// @ts-check
/**
 * Stepping through the moments of a video that were found: along its picture with the mouse, or with
 * the arrow keys.
 *
 * @import { Match, Moment } from "./api.js"
 */

import { announce, element } from "./dom.js";
import { known, learn } from "./state.js";
import { clock } from "./words.js";

const MS_BEFORE_LOADING = 120;

/**
 * The moments of a match by their time, with the one that was found.
 *
 * @param {Match} match
 * @returns {Moment[]}
 */
export function momentsOf(match) {
  if (!match.video) return [];
  const { id, time, score, confidence } = match;
  return [{ id, time, score, confidence }, ...match.moments].sort((a, b) => (a.time ?? 0) - (b.time ?? 0));
}

/**
 * @param {HTMLElement} link around the picture
 * @param {Moment[]} moments by time
 * @param {number} found the place of the one that is shown at first, and again in the end
 * @param {(place: number) => void} show
 */
export function stepThrough(link, moments, found, show) {
  if (moments.length < 2) return;
  const marks = element("span", { className: "marks", ariaHidden: "true" }, ...moments.map(() => element("span")));
  link.append(marks);
  let place = found;
  let waiting = 0;

  /** @param {number} next */
  const step = (next) => {
    place = next;
    for (const [number, mark] of [...marks.children].entries()) mark.classList.toggle("now", number === place);
    show(place);
  };
  const load = () => {
    for (const { id } of moments) {
      if (!known.has(id)) void learn(id, () => { if (moments[place].id === id) show(place); });
    }
  };
  step(found);
  link.addEventListener("pointerenter", (event) => {
    if (event.pointerType !== "touch") waiting = setTimeout(load, MS_BEFORE_LOADING);
  });
  link.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    const { left, width } = link.getBoundingClientRect();
    const share = (event.clientX - left) / width;
    const next = Math.min(moments.length - 1, Math.max(0, Math.floor(share * moments.length)));
    if (next !== place) step(next);
  });
  // The button that plays it lies on the picture.
  link.closest(".match")?.addEventListener("pointerleave", () => {
    clearTimeout(waiting);
    step(found);
  });
  link.addEventListener("keydown", (event) => {
    const direction = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!direction || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault(); // no scrolling
    load();
    step((place + direction + moments.length) % moments.length);
    announce(`${clock(moments[place].time ?? 0)}, moment ${place + 1} of ${moments.length}`);
  });
}
