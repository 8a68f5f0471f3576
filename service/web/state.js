// @ts-check
/**
 * What the page knows. Whoever shows a value listens to it; nobody has to be told by name.
 *
 * @import { Health, IndexedImage, Label } from "./api.js"
 * @import { Browse, Pair } from "./search.js"
 */

import { ProblemError, imagePath, request } from "./api.js";
import { emptySearch } from "./search.js";

/**
 * A value with listeners.
 *
 * @template T
 */
class Observable {
  /** @type {T} */
  #value;
  /** @type {((value: T, before: T) => void)[]} */
  #listeners = [];

  /** @param {T} value */
  constructor(value) {
    this.#value = value;
  }

  get value() {
    return this.#value;
  }

  /**
   * Replace the value and call the listeners, in the order in which they were added.
   *
   * @param {T} value
   */
  set(value) {
    const before = this.#value;
    this.#value = value;
    for (const listener of this.#listeners) listener(value, before);
  }

  /**
   * Replace the value without calling the listeners: the next `set` does.
   *
   * @param {T} value
   */
  prepare(value) {
    this.#value = value;
  }

  /** @param {(value: T, before: T) => void} listener */
  listen(listener) {
    this.#listeners.push(listener);
  }
}

/** The search that the address holds. */
export const search = new Observable(emptySearch());

/** The pair of images that is compared; null while searching. */
export const pair = new Observable(/** @type {Pair | null} */ (null));

/** What is browsed; null while searching or comparing. */
export const browsing = new Observable(/** @type {Browse | null} */ (null));

/** The last answer of `/health`. */
export const health = new Observable(/** @type {Health | null} */ (null));

/** The labels of the index; null until they were fetched. */
export const labels = new Observable(/** @type {Label[] | null} */ (null));

/** @type {Map<string, IndexedImage>} The images of the index whose thumbnails are at hand, by id. */
export const known = new Map();

/**
 * Fetch the label and thumbnail of an image of the index.
 *
 * @param {string} id
 * @param {() => void} then
 */
export async function learn(id, then) {
  try {
    known.set(id, await request(imagePath(id)));
  } catch (error) {
    // The search itself reports what is wrong; here only a thumbnail is missing.
    if (error instanceof ProblemError) return;
    throw error;
  }
  then();
}
