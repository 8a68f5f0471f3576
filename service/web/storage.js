// @ts-check
/** What the browser keeps for the page. If it refuses to, the page keeps it until it is left. */

/** @typedef {"localStorage" | "sessionStorage"} Place Kept for good, or until the tab is closed. */

/** @type {Map<string, string>} */
const refused = new Map();

/**
 * @param {Place} place
 * @param {string} name
 * @returns {string | null}
 */
export function stored(place, name) {
  try {
    return refused.get(name) ?? window[place].getItem(name);
  } catch {
    return null;
  }
}

/**
 * @param {Place} place
 * @param {string} name
 * @param {string} text
 */
export function store(place, name, text) {
  refused.delete(name);
  try {
    window[place].setItem(name, text);
  } catch {
    refused.set(name, text);
  }
}
