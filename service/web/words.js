// @ts-check
/** How things are said. */

// One character as percent-encoded UTF-8.
const ENCODED = /%[2-7][0-9A-F]|%[CD][0-9A-F]%[89AB][0-9A-F]|%E[0-9A-F](?:%[89AB][0-9A-F]){2}|%F[0-4](?:%[89AB][0-9A-F]){3}/g;
// What the worker leaves as it is in ids, so that no other image's id looks like this one.
const NEVER_ENCODED = /[\w\-./ !#$&'()+,;=@[\]{}~^`]/;
const NOT_PRINTABLE = /[\p{C}\p{Z}]/u;

/**
 * An id for people: `%C3%A9t%C3%A9-2.jpg` is été-2.jpg. What is no text stays encoded, and so do
 * characters that nobody sees or that change the order of others.
 *
 * @param {string} id
 */
export function readable(id) {
  return id.replace(ENCODED, (encoded) => {
    try {
      const character = decodeURIComponent(encoded);
      return NEVER_ENCODED.test(character) || NOT_PRINTABLE.test(character) ? encoded : character;
    } catch {
      return encoded;
    }
  });
}

/**
 * An image of which only the id is known yet.
 *
 * @param {string} id
 * @returns {import("./api.js").IndexedImage}
 */
export function unlabelled(id) {
  return { id, label: null, thumbnail: null };
}

/** @param {{id: string, label: string | null}} image */
export function titleOf({ id, label }) {
  return label ?? readable(id);
}

/** @param {{id: string, label: string | null}} image */
export function nameOf({ id, label }) {
  return label === null ? readable(id) : `${label}, ${readable(id)}`;
}

/**
 * A line for each field of the metadata; times are dates, as docs/reference/metadata.md lists them.
 *
 * @param {Record<string, unknown>} [metadata]
 */
export function facts(metadata = {}) {
  return Object.entries(metadata).map(([key, value]) => {
    const time = key === "taken" || key === "modified" ? moment(value) : "";
    return `${key}: ${time.slice(0, 16).replace("T", " ") || value}`;
  });
}

/**
 * The day of a number of seconds since 1970, as the metadata `taken` is one; empty for others.
 *
 * @param {unknown} seconds
 */
export function day(seconds) {
  return moment(seconds).replace(/T.*/, "");
}

/** @param {unknown} seconds */
function moment(seconds) {
  const date = new Date(typeof seconds === "number" ? 1000 * seconds : NaN);
  return Number.isNaN(date.getTime()) ? "" : date.toISOString();
}

/**
 * A time in a video: 0:12, or 1:02:03.
 *
 * @param {number} seconds
 */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  const second = `${whole % 60}`.padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}:${second}`;
  return `${Math.floor(minutes / 60)}:${`${minutes % 60}`.padStart(2, "0")}:${second}`;
}

/** @param {number} share */
export function percent(share) {
  // An estimate is never certain.
  if (share > 0.99) return "> 99 %";
  return share < 0.01 ? "< 1 %" : `${Math.round(100 * share)} %`;
}

/**
 * A share that is counted, of which small ones and large ones matter.
 *
 * @param {number} part 0 to 1
 */
export function share(part) {
  if (part < 0.0001) return "< 0.01 %";
  if (part > 0.9999) return "> 99.99 %";
  const digits = Math.min(part, 1 - part) < 0.01 ? 2 : Math.min(part, 1 - part) < 0.1 ? 1 : 0;
  return `${(100 * part).toFixed(digits)} %`;
}

/** @param {string} text */
export function sentence(text) {
  const ended = /[.!?]$/.test(text) ? text : `${text}.`;
  return ended.charAt(0).toUpperCase() + ended.slice(1);
}

/**
 * Those of the words that are spelt almost like the one that was typed, the most similar first.
 *
 * @param {string} typed
 * @param {string[]} words
 */
export function closest(typed, words) {
  const wanted = typed.toLowerCase();
  return words
    .map((word) => ({ word, edits: editDistance(wanted, word.toLowerCase()) }))
    .filter(({ word, edits }) => edits <= Math.max(wanted.length, word.length) / 3)
    .sort((a, b) => a.edits - b.edits)
    .map(({ word }) => word);
}

/**
 * How many letters have to be inserted, deleted or replaced (Levenshtein's distance).
 *
 * @param {string} from
 * @param {string} to
 */
function editDistance(from, to) {
  let row = Array.from({ length: to.length + 1 }, (_, i) => i);
  for (let i = 1; i <= from.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= to.length; j += 1) {
      const replaced = row[j - 1] + (from[i - 1] === to[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, row[j] + 1, next[j - 1] + 1));
    }
    row = next;
  }
  return row[to.length];
}
