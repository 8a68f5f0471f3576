// @ts-check
/**
 * The address holds the search: whatever is done changes the address, and what is shown follows
 * from it, so that links, reloads and the browser's back button need nothing more.
 *
 * @import { Browse, Pair, Search } from "./search.js"
 */

import { get } from "./dom.js";
import { notify } from "./notice.js";
import {
  LinkError, browseFromFragment, browseToFragment, emptySearch, fromFragment, pairFromFragment,
  pairToFragment, toFragment,
} from "./search.js";
import { browsing, pair, search } from "./state.js";

const MS_BETWEEN_SCROLLS = 150;

/** How many searches of this tab lie behind this one. */
let depth = Number(history.state?.depth ?? 0);
/** Whether the page is on its way to where one was: what is shown there may still be missing. */
let arriving = false;
let scrolled = 0;
/** @type {{replace: boolean} | null} How the search that is prepared enters the history. */
let prepared = null;

/**
 * Show another search.
 *
 * @param {Search} next
 * @param {{replace: boolean}} [step] whether it takes the place of this one in the history
 */
export function go(next, step = { replace: false }) {
  if (prepared) record(toFragment(search.value), prepared);
  record(toFragment(next), step);
  show(next, null, null);
}

/**
 * Show images of the index without a search.
 *
 * @param {Browse} next
 * @param {{replace: boolean}} [step] whether it takes the place of this one in the history
 */
export function browse(next, step = { replace: false }) {
  if (prepared) record(toFragment(search.value), prepared);
  record(browseToFragment(next), step);
  show(emptySearch(), null, next);
}

/**
 * Show a comparison.
 *
 * @param {Pair} next
 */
export function compare(next) {
  if (prepared) record(toFragment(search.value), prepared);
  record(pairToFragment(next), { replace: false });
  show(emptySearch(), next, null);
}

/**
 * @param {Search} nextSearch
 * @param {Pair | null} nextPair
 * @param {Browse | null} nextBrowse
 */
function show(nextSearch, nextPair, nextBrowse) {
  // First without listeners: those of the search need to know whether there is another view.
  pair.prepare(nextPair);
  browsing.prepare(nextBrowse);
  search.set(nextSearch);
  pair.set(nextPair);
  browsing.set(nextBrowse);
}

/**
 * Change the search now, so that whatever is done next takes it along, and show it in a moment,
 * with `settle`.
 *
 * @param {Search} next
 * @param {{replace: boolean}} step
 */
export function prepare(next, step) {
  prepared = step;
  search.prepare(next);
}

/** Show the search that is prepared. */
export function settle() {
  if (!prepared) return;
  record(toFragment(search.value), prepared);
  search.set(search.value);
}

/**
 * @param {string} fragment
 * @param {{replace: boolean}} step
 */
function record(fragment, { replace }) {
  prepared = null;
  if (!arriving) keepReached({ top: scrollY });
  arriving = false;
  const address = fragment || location.pathname + location.search;
  if (!replace) depth += 1;
  if (replace) history.replaceState({ depth }, "", address);
  else history.pushState({ depth }, "", address);
}

/** How many matches were shown when this search was left, and how far down. */
export function reached() {
  const { shown, top } = history.state ?? {};
  return { shown: Number(shown ?? 0), top: Number(top ?? 0) };
}

/** @param {Partial<{shown: number, top: number}>} place */
export function keepReached(place) {
  history.replaceState({ ...history.state, ...place }, "");
}

/** All is shown: go down to where one was. */
export function arrive() {
  if (!arriving) return;
  arriving = false;
  scrollTo({ top: reached().top });
}

function showAddress() {
  prepared = null;
  arriving = true;
  depth = Number(history.state?.depth ?? 0);
  try {
    const found = pairFromFragment(location.hash);
    const browsed = browseFromFragment(location.hash);
    show(found || browsed ? emptySearch() : fromFragment(location.hash), found, browsed);
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    show(emptySearch(), null, null);
    notify("This link cannot be opened", error.message);
  }
}

/** Show what the address holds, now and whenever the browser goes back or forward. */
export function followAddress() {
  search.listen(() => { get("back").hidden = depth === 0; });
  get("back").addEventListener("click", () => history.back());
  addEventListener("popstate", showAddress);
  // The browser would scroll before there is anything to scroll to.
  history.scrollRestoration = "manual";
  addEventListener("scroll", () => {
    clearTimeout(scrolled);
    scrolled = setTimeout(() => { if (!arriving) keepReached({ top: scrollY }); }, MS_BETWEEN_SCROLLS);
  }, { passive: true });
  showAddress();
}
