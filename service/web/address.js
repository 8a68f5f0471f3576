// @ts-check
/**
 * The address holds the search: whatever is done changes the address, and what is shown follows
 * from it, so that links, reloads and the browser's back button need nothing more.
 *
 * @import { Search } from "./search.js"
 */

import { get } from "./dom.js";
import { notify } from "./notice.js";
import { LinkError, emptySearch, fromFragment, toFragment } from "./search.js";
import { search } from "./state.js";

/** How many searches of this tab lie behind this one. */
let depth = Number(history.state?.depth ?? 0);

/**
 * @param {Search} next
 * @param {{replace?: boolean}} [options] whether it takes the place of this one in the history
 */
export function go(next, { replace = false } = {}) {
  const address = toFragment(next) || location.pathname + location.search;
  if (replace) {
    history.replaceState({ depth }, "", address);
  } else {
    depth += 1;
    history.pushState({ depth }, "", address);
  }
  search.set(next);
}

function showAddress() {
  depth = Number(history.state?.depth ?? 0);
  try {
    search.set(fromFragment(location.hash));
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    search.set(emptySearch());
    notify("This link cannot be opened", error.message);
  }
}

/** Show what the address holds, now and whenever the browser goes back or forward. */
export function followAddress() {
  search.listen(() => { get("back").hidden = depth === 0; });
  get("back").addEventListener("click", () => history.back());
  addEventListener("popstate", showAddress);
  showAddress();
}
