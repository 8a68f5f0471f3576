// @ts-check
/**
 * What was searched for in this browser, the latest first. The list stays here: nothing of it is sent.
 *
 * @typedef {{address: string, name: string, picture: string | null, at: number}} Recent `address` is
 *   the search as a fragment, `picture` a small one as a data URI, `at` in milliseconds since 1970.
 * @import { Search } from "./search.js"
 */

import { go } from "./address.js";
import { hasKey } from "./api.js";
import { announce, element, get, onPlainClick, thumbnail } from "./dom.js";
import { fromFragment, isEmpty, toFragment } from "./search.js";
import { health, known, learn, search } from "./state.js";
import { store, stored } from "./storage.js";
import { titleOf } from "./words.js";

const MAX_RECENT = 20;
// Several services may share a host, each below a prefix.
const NAME = `image-search recent ${location.pathname}`;

/** Where a key is needed, pictures of the index stay no longer than the key. */
function place() {
  return hasKey() ? "sessionStorage" : "localStorage";
}

/** @returns {Recent[]} */
function recent() {
  try {
    const found = JSON.parse(stored(place(), NAME) ?? "[]");
    return Array.isArray(found) ? found.filter(isRecent) : [];
  } catch {
    return [];
  }
}

/** @param {Partial<Recent> | null} one as another version may have kept it */
function isRecent(one) {
  return typeof one?.address === "string" && one.address.startsWith("#") && typeof one.name === "string"
    && (one.picture === null || `${one.picture}`.startsWith("data:image/")) && Number.isFinite(one.at)
    && !isEmpty(fromFragment(one.address));
}

/**
 * Put a search at the head of the list, in place of earlier ones with the same picture.
 *
 * @param {Search} found
 */
export function remember(found) {
  const { query } = found;
  if (query === null) return;
  let name = "Your picture";
  let picture = null;
  if ("id" in query) {
    const image = known.get(query.id);
    if (!image) return void learn(query.id, () => remember(found));
    name = titleOf(image);
    picture = image.thumbnail;
  } else {
    picture = query.preview;
  }
  const address = toFragment(found);
  const others = recent().filter((one) => subject(one.address) !== subject(address));
  keep([{ address, name, picture, at: Date.now() }, ...others].slice(0, MAX_RECENT));
}

/** @param {Recent[]} list */
function keep(list) {
  store(place(), NAME, JSON.stringify(list));
  showRecent();
}

/** @param {string} address */
function subject(address) {
  const fields = new URLSearchParams(address.slice(1));
  return fields.get("id") ?? fields.get("embedding");
}

function showRecent() {
  if (get("start").hidden) return;
  const list = recent();
  get("recent-section").hidden = list.length === 0;
  get("recent").replaceChildren(...list.map(offer));
}

/** @param {Recent} one */
function offer({ address, name, picture, at }) {
  const time = new Date(at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const link = element("a", { href: address, title: `${name}, ${time}`, draggable: false });
  link.setAttribute("aria-label", `${name}, searched for on ${time}`);
  link.append(thumbnail(picture, name));
  onPlainClick(link, () => go(fromFragment(address)));
  return element("li", {}, link);
}

export function installRecent() {
  search.listen(showRecent);
  health.listen(showRecent); // the key may have come
  addEventListener("storage", ({ key }) => { if (key === NAME) showRecent(); }); // of another tab
  get("recent-clear").addEventListener("click", () => {
    keep([]);
    announce("The list is cleared.");
    get("start-title").focus({ preventScroll: true });
  });
}
