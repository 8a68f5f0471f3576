// @ts-check
/**
 * The matches of the search.
 *
 * Ids, labels and metadata are others' data: they become text and attributes, never markup.
 *
 * @import { Match, Model, SearchResponse } from "./api.js"
 * @import { Search } from "./search.js"
 */

import { request } from "./api.js";
import { arrive, go, keepReached, reached } from "./address.js";
import { announce, element, get, isNear, keepFocus, onPlainClick, thumbnail } from "./dom.js";
import { closeNotice, notify } from "./notice.js";
import { momentsOf, stepThrough } from "./moments.js";
import { remember } from "./recent.js";
import { MAX_EXAMPLES, MAX_TOP_K, isEmpty, isUnfamiliar, modelKey, toBody, toFragment, withQuery } from "./search.js";
import { selectButton } from "./selection.js";
import { health, known, labels, search } from "./state.js";
import { runAlone } from "./task.js";
import { labelViewButton, viewButton } from "./viewer.js";
import { clock, closest, facts, nameOf, percent, readable, titleOf } from "./words.js";

const SMALL_SIDE = 160;
// From the usual 24 to the most, 100, in two steps: what is shown already is sent again.
const MORE = 38;

/** Whether scores are distances, of which less is more similar. */
let distance = false;
/** Whether more matches are on their way. */
let adding = false;

/**
 * @param {Search} next
 * @param {Search} before
 */
function showResults(next, before) {
  get("found").hidden = isEmpty(next);
  if (isEmpty(next)) {
    get("matches").replaceChildren();
    return;
  }
  if (JSON.stringify(next.query) !== JSON.stringify(before.query)) scrollTo({ top: 0 });
  void find();
}

function find() {
  const topK = Math.max(search.value.topK, reached().shown);
  return runAlone(
    async (signal) => {
      const answer = await ask(topK, signal).catch((error) => {
        if (!signal.aborted) showNothing("No answer", "");
        throw error;
      });
      if (!fits(answer.model)) return;
      closeNotice();
      showMatches(answer);
      showEnd(answer.matches.length, topK);
      remember(search.value);
      arrive();
    },
    "The search failed",
    () => search.set(search.value),
  );
}

/** Add the next matches to those that are shown. */
function findMore() {
  if (adding || get("results").getAttribute("aria-busy") === "true") return undefined;
  const before = get("matches").childElementCount;
  const topK = Math.min(MAX_TOP_K, before + MORE);
  const pressed = document.activeElement === get("more-matches");
  adding = true;
  return runAlone(
    async (signal) => {
      const { matches } = await ask(topK, signal);
      const there = new Set([...get("matches").children].map((one) => /** @type {HTMLElement} */ (one).dataset.id));
      const added = judged(matches).filter(({ id, video }) => !there.has(video ?? id));
      learnOf(added);
      const cards = added.map(card);
      get("matches").append(...cards);
      const count = get("matches").childElementCount;
      keepReached({ shown: count });
      showEnd(matches.length, topK);
      get("results-title").textContent = counted(count);
      announce(added.length ? `${added.length} more, ${counted(count)}` : "There are no more matches.");
      // Whoever pressed the button reads on from there.
      if (pressed) (cards[0]?.querySelector("a") ?? get("results-title")).focus({ preventScroll: true });
    },
    "More matches could not be loaded",
    () => void findMore(),
    { adds: true },
  ).finally(() => { adding = false; });
}

/**
 * @param {number} topK
 * @param {AbortSignal} signal
 * @returns {Promise<SearchResponse>}
 */
function ask(topK, signal) {
  return request("query", { json: toBody({ ...search.value, topK }), signal });
}

/**
 * Offer more matches, or say that there are no others.
 *
 * @param {number} found
 * @param {number} asked
 */
function showEnd(found, asked) {
  get("more-matches").hidden = found < asked || asked >= MAX_TOP_K;
  get("matches-end").hidden = found < MAX_TOP_K;
}

/** @param {number} count */
function counted(count) {
  return count === 1 ? "1 match" : `${count} matches`;
}

/**
 * The matches, without confidence if nothing in the index is like the picture: the service sees no
 * more than the embedding, which does not tell.
 *
 * @param {Match[]} found
 */
function judged(found) {
  return isUnfamiliar(search.value) ? found.map((match) => ({ ...match, confidence: null })) : found;
}

/** @param {Match[]} matches */
function learnOf(matches) {
  for (const { id, label, thumbnail: source, metadata } of matches) {
    if (source) known.set(id, { id, label, thumbnail: source, metadata });
  }
}

/** @param {Model} model */
function fits(model) {
  const { query } = search.value;
  if (!query || !("embedding" in query) || query.model === modelKey(model)) return true;
  showNothing("No answer", "");
  notify(
    "This link was made with another model",
    "Its picture was embedded with another model than this index, so they cannot be compared. Search with the picture itself.",
  );
  return false;
}

/** @param {SearchResponse} answer */
function showMatches({ matches: found, took_ms }) {
  const unfamiliar = isUnfamiliar(search.value);
  const matches = judged(found);
  if (matches.length === 0) {
    const { labels: only, minConfidence } = search.value;
    const narrowed = only.length > 0 || minConfidence > 0;
    let why = narrowed ? "No image of the index passes these options." : "The index has no other images.";
    // What a match among the images of chosen labels is worth depends on that choice.
    if (only.length > 0 && minConfidence > 0) why = "Matches that are filtered by label have no confidence: choose labels or a confidence, not both.";
    showNothing("No matches", why);
    get("reset").hidden = !narrowed;
    offerMeant();
    return;
  }
  learnOf(matches);
  if (matches.some(({ video }) => video)) get("video-option").hidden = false;
  if (matches.some((match) => match.confidence !== null)) get("confidence-option").hidden = false;
  get("matches").replaceChildren(...matches.map(card));
  get("none").hidden = true;
  get("hint").hidden = false;
  get("unfamiliar").hidden = !unfamiliar;
  get("results-title").textContent = counted(matches.length);
  get("took").textContent = `in ${took_ms.total < 10 ? took_ms.total.toFixed(1) : Math.round(took_ms.total)} ms`;
  const warning = unfamiliar ? "Nothing like this is in the index. " : "";
  announce(`${warning}${get("results-title").textContent}. Best: ${describe(matches[0])}`);
  keepFocus("results-title");
}

/**
 * @param {string} title
 * @param {string} text
 */
function showNothing(title, text) {
  get("matches").replaceChildren();
  get("more-matches").hidden = get("matches-end").hidden = true;
  get("results-title").textContent = title;
  get("took").textContent = "";
  get("hint").hidden = true;
  get("unfamiliar").hidden = true;
  get("none").hidden = !text;
  get("none-text").textContent = text;
  get("reset").hidden = true;
  get("meant").hidden = true;
  announce(`${title}. ${text}`);
  keepFocus("results-title");
}

/** Where a link names a label that the index does not have, offer the one that was meant. */
function offerMeant() {
  const all = (labels.value ?? []).map(({ label }) => label);
  const wrong = search.value.labels.find((label) => !all.includes(label));
  const [meant] = wrong === undefined ? [] : closest(wrong, all);
  get("meant").hidden = meant === undefined;
  if (meant === undefined) return;
  get("none-text").textContent = `No image of the index has the label “${wrong}”.`;
  get("meant").textContent = `Did you mean “${meant}”?`;
  get("meant").onclick = () => {
    const others = search.value.labels.filter((label) => label !== wrong && label !== meant);
    go({ ...search.value, labels: [...others, meant] });
  };
}

/**
 * @param {Match} match
 * @param {number | null} [time]
 */
function describe(match, time = match.time) {
  const sure = match.confidence === null ? "" : `, confidence ${percent(match.confidence)}`;
  const at = match.video && time !== null ? ` at ${clock(time)}` : "";
  return `${nameOf(named(match))}${at}, ${distance ? "distance" : "score"} ${match.score.toFixed(3)}${sure}`;
}

/**
 * A video is called by its name, and not by that of a frame.
 *
 * @param {Match} match
 */
function named({ id, label, video }) {
  return { id: video ?? id, label };
}

/** @param {Match} match */
function card(match) {
  const moments = momentsOf(match);
  const found = moments.findIndex(({ id }) => id === match.id);
  let place = found;
  const shownId = () => moments[place]?.id ?? match.id;
  const link = element("a", { className: "picture", draggable: false });
  const picture = thumbnail(match.thumbnail, titleOf(named(match)));
  picture.addEventListener("load", enlarge);
  link.append(picture);
  onPlainClick(link, () => go(withQuery({ id: shownId() }, search.value)));
  const name = readable(match.video ?? match.id);
  const names = name === match.id ? [name] : [name, `id: ${match.id}`];
  const about = [...names, ...facts(match.metadata)].join("\n");
  const head = element("p", { className: "line" }, element("strong", {}, titleOf(named(match))));
  const made = element("li", { className: "match" }, link, selectButton(match), head);
  made.dataset.id = match.video ?? match.id;
  const open = viewButton(match, () => [moments, Math.max(0, place)]);
  link.after(open);
  const bar = element("div", { className: "confidence" });
  const sure = element("span", { className: "percent" });
  if (match.confidence !== null) {
    head.append(sure);
    head.title = "Confidence: how probable it is that both show the same kind of thing";
    made.append(bar);
  }
  const score = element("span", { className: "word" }, distance ? "distance " : "score ");
  const number = document.createTextNode("");
  const scored = element(
    "span", { className: "score", title: distance ? "Less is more similar" : "More is more similar" }, score, number,
  );
  const show = (/** @type {number} */ next) => {
    place = next;
    const moment = { ...match, ...moments[place] };
    link.href = toFragment(withQuery({ id: moment.id }, search.value));
    link.setAttribute("aria-label", `More like ${describe(moment)}`);
    number.data = moment.score.toFixed(3);
    if (moment.confidence !== null) {
      sure.textContent = percent(moment.confidence);
      bar.style.setProperty("--share", `${moment.confidence}`);
    }
    labelViewButton(open, match, moment.time);
    const source = moment.id === match.id ? match.thumbnail : known.get(moment.id)?.thumbnail;
    if (source && picture instanceof HTMLImageElement) picture.src = source;
  };
  show(found);
  stepThrough(link, moments, found, show);
  const id = element("p", { className: "id", title: about }, element("bdi", {}, name));
  id.hidden = match.label === null; // it is the headline
  const examples = [exampleButton("positive", "+", match), exampleButton("negative", "−", match)];
  made.append(element("div", { className: "line" }, scored, ...examples), id);
  return made;
}

/**
 * Give large thumbnails the room to be seen as they are.
 *
 * @param {Event} event
 */
function enlarge({ target }) {
  const { naturalWidth, naturalHeight } = /** @type {HTMLImageElement} */ (target);
  if (Math.max(naturalWidth, naturalHeight) > SMALL_SIDE) get("matches").classList.add("large");
}

/**
 * @param {"positive" | "negative"} sign
 * @param {string} text
 * @param {Match} match
 */
function exampleButton(sign, text, match) {
  const button = element("button", { type: "button", className: `round ${sign}` }, text);
  button.title = sign === "positive" ? "More like this, too" : "Less like this";
  button.setAttribute("aria-label", `Add ${nameOf(match)} as a ${sign} example`);
  button.disabled = search.value[sign].length >= MAX_EXAMPLES;
  button.addEventListener("click", () => {
    go({ ...search.value, [sign]: [...search.value[sign], match.id] });
  });
  return button;
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    get("copy").textContent = "Copied";
    announce("The link is copied.");
    setTimeout(() => { get("copy").textContent = "Copy link"; }, 2000);
  } catch {
    // Browsers allow it only over HTTPS and on this machine.
    notify("The link could not be copied", "Copy it from the address bar: the address holds this search.");
  }
}

export function installResults() {
  search.listen(showResults);
  health.listen((now) => {
    if (distance === (now?.metric === "euclidean")) return;
    distance = !distance;
    if (!isEmpty(search.value)) void find();
  });
  // The labels may come after the answer.
  labels.listen(() => { if (!get("none").hidden && get("matches").childElementCount === 0) offerMeant(); });
  get("copy").addEventListener("click", () => void copyLink());
  get("more-matches").addEventListener("click", () => void findMore());
  // Only where someone scrolls: as many as were asked for are enough until then.
  addEventListener("scroll", () => { if (isNear(get("more-matches"))) void findMore(); }, { passive: true });
}
