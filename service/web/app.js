/**
 * The page. The address holds the search: whatever is done changes the address, and what is shown
 * follows from it, so that links, reloads and the browser's back button need nothing more.
 *
 * Ids, labels and metadata are others' data: they become text and attributes, never markup.
 *
 * @import { IndexedImage, Match, Model, SearchResponse } from "./api.js"
 * @import { Options, Search } from "./search.js"
 */

import { ProblemError, hasKey, imagePath, request, setKey } from "./api.js";
import { element, get, input, onPlainClick } from "./dom.js";
import { takePictures } from "./handover.js";
import { prepare } from "./pictures.js";
import {
  LinkError, MAX_EXAMPLES, defaultOptions, emptySearch, encodeEmbedding, fromFragment, isEmpty,
  modelKey, randomEmbedding, toBody, toFragment, withQuery,
} from "./search.js";

const TITLE = "Image search";
const MS_BEFORE_PROGRESS = 150;
const MS_BETWEEN_CHECKS = 2000;
const MS_BETWEEN_STEPS_OF_A_SLIDER = 150;
const MAX_LABELS_SHOWN = 24;
const IMAGES_TO_START_WITH = 10;

let search = emptySearch();
/** How many searches of this tab lie behind this one. */
let depth = Number(history.state?.depth ?? 0);
let running = new AbortController();
/** @type {(() => void) | null} What to do again when the service is there. */
let retry = null;
let waiting = 0;
let sliding = 0;
let progressing = 0;
let distance = false;
/** @type {{label: string, count: number | null}[] | null} */
let labels = null;
/** @type {Map<string, IndexedImage>} What is known of images of the index. */
const known = new Map();
/** @type {Map<string, string>} The pictures that were uploaded, by embedding. */
const uploaded = new Map();

// --- From one search to the next ------------------------------------------------------------------

/**
 * @param {Search} next
 * @param {{replace?: boolean}} [options] whether it takes the place of this one in the history
 */
function go(next, { replace = false } = {}) {
  const address = toFragment(next) || location.pathname + location.search;
  if (replace) {
    history.replaceState({ depth }, "", address);
  } else {
    depth += 1;
    history.pushState({ depth }, "", address);
  }
  show(next);
}

function showAddress() {
  depth = Number(history.state?.depth ?? 0);
  try {
    show(fromFragment(location.hash));
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    show(emptySearch());
    notify("This link cannot be opened", error.message);
  }
}

/** @param {Search} next */
function show(next) {
  const moved = JSON.stringify(next.query) !== JSON.stringify(search.query);
  search = next;
  clearTimeout(sliding);
  running.abort();
  retry = null;
  setBusy(false);
  closeNotice();
  get("start").hidden = !isEmpty(search);
  get("found").hidden = isEmpty(search);
  get("back").hidden = depth === 0;
  showOptions();
  if (isEmpty(search)) {
    document.title = TITLE;
    get("matches").replaceChildren();
    keepFocus("start-title");
    return;
  }
  showQuery();
  if (moved) scrollTo({ top: 0 });
  void find();
}

/**
 * Do something that only the latest of its kind may finish, and tell of its errors.
 *
 * @param {(signal: AbortSignal) => Promise<void>} work
 * @param {string} failure
 * @param {() => void} again
 */
async function alone(work, failure, again) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  setBusy(true);
  try {
    await work(signal);
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof ProblemError)) throw error;
    fail(failure, error, again);
  } finally {
    if (!signal.aborted) setBusy(false);
  }
}

function find() {
  return alone(
    async (signal) => {
      /** @type {SearchResponse} */
      const answer = await request("query", { json: toBody(search), signal }).catch((error) => {
        if (!signal.aborted) showNothing("No answer", "");
        throw error;
      });
      if (!fits(answer.model)) return;
      closeNotice();
      showMatches(answer);
    },
    "The search failed",
    () => show(search),
  );
}

/** @param {Model} model */
function fits(model) {
  const { query } = search;
  if (!query || !("embedding" in query) || query.model === modelKey(model)) return true;
  showNothing("No answer", "");
  notify(
    "This link was made with another model",
    "Its picture was embedded by a model that this index was not built with, so that they cannot be compared. Search with the picture itself.",
  );
  return false;
}

/** @param {Blob} file */
function searchFile(file) {
  const name = file instanceof File && file.name ? `“${file.name}”` : "The picture";
  return alone(
    async (signal) => {
      const { upload, preview } = await prepare(file);
      signal.throwIfAborted();
      const form = new FormData();
      form.append("image", upload, "picture");
      const answer = await request("embeddings", { form, signal });
      const embedding = encodeEmbedding(answer.embedding);
      if (preview) uploaded.set(embedding, URL.createObjectURL(upload));
      go(withQuery({ embedding, model: modelKey(answer.model), preview }, search));
    },
    `${name} could not be searched for`,
    () => void searchFile(file),
  );
}

// --- What is shown --------------------------------------------------------------------------------

/** @param {boolean} busy */
function setBusy(busy) {
  get("results").setAttribute("aria-busy", `${busy}`);
  clearTimeout(progressing);
  get("progress").hidden = true;
  if (!busy) return;
  progressing = setTimeout(() => {
    get("progress").hidden = false;
    announce("Searching…");
  }, MS_BEFORE_PROGRESS);
}

/** @param {string} text */
function announce(text) {
  get("announcement").textContent = text;
}

/**
 * Where what had the focus is gone, move it to a heading.
 *
 * @param {string} id
 */
function keepFocus(id) {
  const active = document.activeElement;
  const lost = !active || active === document.body || active.closest("[hidden]");
  // Not when the page has just been opened.
  if (lost && navigator.userActivation.hasBeenActive) get(id).focus({ preventScroll: true });
}

/**
 * @param {HTMLImageElement} image
 * @param {string | null | undefined} source
 */
function setPicture(image, source) {
  if (source) image.src = source;
  else image.removeAttribute("src");
}

function showQuery() {
  const { query } = search;
  get("query-frame").hidden = query === null;
  const picture = /** @type {HTMLImageElement} */ (get("query-picture"));
  if (query && "embedding" in query) {
    setPicture(picture, uploaded.get(query.embedding) ?? query.preview);
    nameQuery("Your picture", "");
  } else if (query) {
    const image = known.get(query.id);
    setPicture(picture, image?.thumbnail);
    nameQuery(image?.label ?? query.id, query.id);
    if (!image) void learn(query.id, showQuery);
  } else {
    nameQuery("Examples", "");
  }
  showExamples("positive", search.positive);
  showExamples("negative", search.negative);
}

/**
 * @param {string} label
 * @param {string} id
 */
function nameQuery(label, id) {
  get("query-label").textContent = label;
  get("query-id").textContent = id === label ? "" : id;
  input("query-picture").alt = label;
  document.title = `${label} · ${TITLE}`;
}

/**
 * Fetch the label and thumbnail of an image of the index.
 *
 * @param {string} id
 * @param {() => void} then
 */
async function learn(id, then) {
  try {
    known.set(id, await request(imagePath(id)));
  } catch (error) {
    // The search itself tells what is wrong; here only a thumbnail is missing.
    if (error instanceof ProblemError) return;
    throw error;
  }
  then();
}

/**
 * @param {"positive" | "negative"} sign
 * @param {string[]} ids
 */
function showExamples(sign, ids) {
  get(`${sign}-group`).hidden = ids.length === 0;
  get(sign).replaceChildren(...ids.map((id) => {
    const image = known.get(id);
    if (!image) void learn(id, () => showExamples(sign, search[sign]));
    const remove = element("button", { type: "button", title: `Remove ${id}` });
    remove.setAttribute("aria-label", `Remove the ${sign} example ${name(image ?? { id, label: null })}`);
    remove.append(thumbnail(image?.thumbnail ?? null, image?.label ?? id));
    remove.addEventListener("click", () => {
      go({ ...search, [sign]: search[sign].filter((other) => other !== id) });
    });
    return element("li", {}, remove);
  }));
}

/** @param {{id: string, label: string | null}} image */
function name({ id, label }) {
  return label === null ? id : `${label}, ${id}`;
}

/**
 * A picture whose description is in the control around it.
 *
 * @param {string | null} source
 * @param {string} label
 */
function thumbnail(source, label) {
  if (!source) {
    return element("span", { className: "no-picture", ariaHidden: "true" }, label.slice(0, 1));
  }
  return element("img", { src: source, alt: "", draggable: false, decoding: "async" });
}

/** @param {SearchResponse} answer */
function showMatches({ matches, took_ms }) {
  if (matches.length === 0) {
    const narrowed = search.labels.length > 0 || search.minConfidence > 0;
    showNothing("No matches", narrowed ? "No image of the index passes these options." : "The index has no other images.");
    get("reset").hidden = !narrowed;
    return;
  }
  for (const { id, label, thumbnail: source } of matches) {
    if (source) known.set(id, { id, label, thumbnail: source });
  }
  if (matches.some((match) => match.confidence !== null)) get("confidence-option").hidden = false;
  get("matches").replaceChildren(...matches.map(card));
  get("none").hidden = true;
  get("hint").hidden = false;
  get("results-title").textContent = matches.length === 1 ? "1 match" : `${matches.length} matches`;
  get("took").textContent = `in ${took_ms.total < 10 ? took_ms.total.toFixed(1) : Math.round(took_ms.total)} ms`;
  announce(`${get("results-title").textContent}. Best: ${describe(matches[0])}`);
  keepFocus("results-title");
}

/**
 * @param {string} title
 * @param {string} text
 */
function showNothing(title, text) {
  get("matches").replaceChildren();
  get("results-title").textContent = title;
  get("took").textContent = "";
  get("hint").hidden = true;
  get("none").hidden = !text;
  get("none-text").textContent = text;
  get("reset").hidden = true;
  announce(`${title}. ${text}`);
  keepFocus("results-title");
}

/** @param {Match} match */
function describe(match) {
  const sure = match.confidence === null ? "" : `, confidence ${percent(match.confidence)}`;
  return `${name(match)}, ${distance ? "distance" : "score"} ${match.score.toFixed(3)}${sure}`;
}

/** @param {number} share */
function percent(share) {
  // An estimate is never certain.
  if (share > 0.99) return "> 99 %";
  return share < 0.01 ? "< 1 %" : `${Math.round(100 * share)} %`;
}

/** @param {Match} match */
function card(match) {
  const link = element("a", {
    className: "picture",
    href: toFragment(withQuery({ id: match.id }, search)),
    draggable: false,
  });
  link.setAttribute("aria-label", `More like ${describe(match)}`);
  link.append(thumbnail(match.thumbnail, match.label ?? match.id));
  onPlainClick(link, () => go(withQuery({ id: match.id }, search)));
  const facts = [match.id, ...Object.entries(match.metadata).map(([key, value]) => `${key}: ${value}`)];
  const sure = match.confidence;
  const head = element("p", { className: "line" }, element("strong", {}, match.label ?? match.id));
  const made = element("li", { className: "match" }, link, head);
  if (sure !== null) {
    const bar = element("div", { className: "confidence" });
    bar.style.setProperty("--share", `${sure}`);
    head.append(element("span", { className: "percent" }, percent(sure)));
    head.title = "Confidence: how probable it is that both show the same kind of thing";
    made.append(bar);
  }
  const score = element(
    "span",
    { className: "score", title: distance ? "Less is more similar" : "More is more similar" },
    element("span", { className: "word" }, distance ? "distance " : "score "),
    match.score.toFixed(3),
  );
  const id = element("p", { className: "id", title: facts.join("\n") }, element("bdi", {}, match.id));
  id.hidden = match.label === null; // it is the headline
  const examples = [exampleButton("positive", "+", match), exampleButton("negative", "−", match)];
  made.append(element("div", { className: "line" }, score, ...examples), id);
  return made;
}

/**
 * @param {"positive" | "negative"} sign
 * @param {string} text
 * @param {Match} match
 */
function exampleButton(sign, text, match) {
  const button = element("button", { type: "button", className: `round ${sign}` }, text);
  button.title = sign === "positive" ? "I want more like this, too" : "I don’t want such";
  button.setAttribute("aria-label", `Add ${name(match)} as a ${sign} example`);
  button.disabled = search[sign].length >= MAX_EXAMPLES;
  button.addEventListener("click", () => {
    go({ ...search, [sign]: [...search[sign], match.id] });
  });
  return button;
}

// --- Options --------------------------------------------------------------------------------------

function showOptions() {
  input("top-k").value = `${search.topK}`;
  input("confidence").value = `${search.minConfidence}`;
  input("deduplicate").checked = search.deduplicate;
  if (search.minConfidence) get("confidence-option").hidden = false;
  showOptionValues();
  showLabels();
}

function showOptionValues() {
  get("top-k-value").textContent = input("top-k").value;
  const least = Number(input("confidence").value);
  get("confidence-value").textContent = least ? `at least ${percent(least)}` : "any";
  input("confidence").setAttribute("aria-valuetext", get("confidence-value").textContent ?? "");
}

function showLabels() {
  const all = labels ?? [];
  get("labels-option").hidden = all.length === 0 && search.labels.length === 0;
  get("label-search").hidden = all.length <= MAX_LABELS_SHOWN;
  const wanted = input("label-search").value.trim().toLowerCase();
  const others = all.filter(({ label }) => {
    return !search.labels.includes(label) && label.toLowerCase().includes(wanted);
  });
  // Where all have room each keeps its place; else the chosen ones come first.
  const chosen = search.labels.map((label) => all.find((one) => one.label === label) ?? { label, count: null });
  const few = all.length <= MAX_LABELS_SHOWN && chosen.every((one) => all.includes(one));
  const shown = few ? all : [...chosen, ...others.slice(0, MAX_LABELS_SHOWN)];
  const focused = document.activeElement instanceof HTMLInputElement ? document.activeElement : null;
  const again = focused?.closest("#labels") ? focused.value : null;
  get("labels").replaceChildren(...shown.map(({ label, count }) => {
    const box = element("input", { type: "checkbox", value: label, checked: search.labels.includes(label) });
    const text = element("span", {}, label);
    const made = element("label", {}, box, text);
    if (count !== null) text.append(element("small", { ariaHidden: "true" }, ` ${count.toLocaleString("en")}`));
    return made;
  }));
  if (again !== null) {
    [...get("labels").querySelectorAll("input")].find((box) => box.value === again)?.focus();
  }
}

/** @param {Partial<Options>} options */
function setOptions(options) {
  go({ ...search, ...options }, { replace: true });
}

function installOptions() {
  for (const id of ["top-k", "confidence"]) {
    get(id).addEventListener("input", () => {
      showOptionValues();
      // At once, so that whatever else is done meanwhile takes it along.
      search = {
        ...search,
        topK: Number(input("top-k").value),
        minConfidence: Number(input("confidence").value),
      };
      clearTimeout(sliding);
      sliding = setTimeout(() => setOptions({}), MS_BETWEEN_STEPS_OF_A_SLIDER);
    });
  }
  get("deduplicate").addEventListener("change", () => {
    setOptions({ deduplicate: input("deduplicate").checked });
  });
  get("labels").addEventListener("change", (event) => {
    const box = /** @type {HTMLInputElement} */ (event.target);
    const others = search.labels.filter((label) => label !== box.value);
    setOptions({ labels: box.checked ? [...others, box.value] : others });
  });
  get("label-search").addEventListener("input", showLabels);
  get("reset").addEventListener("click", () => setOptions(defaultOptions()));
  const options = /** @type {HTMLDetailsElement} */ (get("options"));
  const wide = matchMedia("(min-width: 800px)");
  const fold = () => { options.open = wide.matches; };
  wide.addEventListener("change", fold);
  fold();
}

// --- Errors, and a service that is not there ------------------------------------------------------

/**
 * @param {string} title
 * @param {string} text
 * @param {{needsKey?: boolean}} [options]
 */
function notify(title, text, { needsKey = false } = {}) {
  get("notice-title").textContent = title;
  get("notice-text").textContent = text;
  get("key-form").hidden = !needsKey;
  get("notice").classList.toggle("asks", needsKey);
  get("notice").hidden = false;
  if (needsKey) get("key").focus();
}

function closeNotice() {
  get("notice").hidden = true;
}

/**
 * @param {string} title
 * @param {ProblemError} problem
 * @param {() => void} again
 */
function fail(title, problem, again) {
  retry = again;
  if (problem.status === 401) {
    notify(
      hasKey() ? "This key is not accepted" : "This service asks for a key",
      hasKey() ? sentence(problem.message) : "Whoever runs it can give you one. It is kept until this tab is closed.",
      { needsKey: true },
    );
  } else if (problem.passes) {
    notify(title, `${sentence(problem.message)} The page tries again by itself.`);
    waitForService();
  } else {
    notify(title, sentence(problem.message));
  }
}

/** @param {string} text */
function sentence(text) {
  const ended = /[.!?]$/.test(text) ? text : `${text}.`;
  return ended.charAt(0).toUpperCase() + ended.slice(1);
}

function waitForService() {
  clearTimeout(waiting);
  waiting = setTimeout(() => void checkService(), MS_BETWEEN_CHECKS);
}

async function checkService() {
  let health;
  try {
    health = await request("health");
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error;
    showService(error.status ? "not ready" : "offline", "bad", { Reason: sentence(error.message) });
    if (get("notice").hidden && isEmpty(search)) {
      const title = error.status ? "The service is not ready" : "The service is offline";
      retry ??= () => {};
      notify(title, `${sentence(error.message)} The page tries again by itself.`);
    }
    waitForService();
    return;
  }
  if (distance !== (health.metric === "euclidean")) {
    distance = !distance;
    if (!isEmpty(search)) void find();
  }
  /** @type {Model} */
  const { architecture, weights, precision, fingerprint, input_size, recipe } = health.model;
  showService(`${health.count.toLocaleString("en")} images`, "good", {
    Index: health.index,
    Namespace: health.namespace === "__default__" ? "" : health.namespace,
    Images: health.count.toLocaleString("en"),
    Store: health.store,
    Metric: health.metric,
    Model: `${architecture}, ${weights}, ${precision}, ${input_size} × ${input_size} pixels`,
    Fingerprint: fingerprint,
    Recipe: recipe,
    Created: new Date(health.created_at).toLocaleString(),
    Version: health.version,
  });
  if (retry) {
    const again = retry;
    retry = null;
    closeNotice();
    again();
  }
  if (labels === null) await loadIndex();
}

/**
 * @param {string} summary
 * @param {"good" | "bad"} state
 * @param {Record<string, string>} facts
 */
function showService(summary, state, facts) {
  get("dot").className = `dot ${state}`;
  get("index-summary").textContent = summary;
  get("index-facts").replaceChildren(...Object.entries(facts).flatMap(([term, fact]) => {
    return fact ? [element("dt", {}, term), element("dd", {}, fact)] : [];
  }));
}

async function loadIndex() {
  try {
    labels = (await request("labels")).labels;
    showLabels();
    orderExamples();
    await showSome();
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error;
    labels = null;
    if (error.status === 401 || isEmpty(search)) fail("The index could not be read", error, () => {});
  }
}

/** Where the index knows none of the kinds that the examples show, its own images come first. */
function orderExamples() {
  const kinds = [...get("examples").querySelectorAll("img")].map(({ alt }) => alt);
  if (labels?.some(({ label }) => kinds.includes(label))) return;
  get("start").append(get("examples-section"));
}

/** Some images of the index, of as many labels as possible. */
async function showSome() {
  const wanted = (labels ?? []).map(({ label }) => ({ label, order: Math.random() }))
    .sort((a, b) => a.order - b.order)
    .slice(0, IMAGES_TO_START_WITH)
    .map(({ label }) => [label]);
  if (wanted.length === 0) wanted.push([]);
  const top_k = Math.ceil(IMAGES_TO_START_WITH / wanted.length);
  /** @type {SearchResponse[]} */
  const answers = await Promise.all(wanted.map((labels) => {
    return request("query", { json: { embedding: randomEmbedding(), labels, top_k } });
  }));
  const images = answers.flatMap(({ matches }) => matches).slice(0, IMAGES_TO_START_WITH);
  get("some").replaceChildren(...images.map((image) => {
    const { id, label, thumbnail: source } = image;
    known.set(id, { id, label, thumbnail: source });
    const link = element("a", { href: toFragment(withQuery({ id }, search)), title: name(image), draggable: false });
    link.setAttribute("aria-label", name(image));
    link.append(thumbnail(source, label ?? id));
    onPlainClick(link, () => go(withQuery({ id }, search)));
    return element("li", {}, link);
  }));
  get("some-section").hidden = images.length === 0;
}

// --- Start ----------------------------------------------------------------------------------------

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

installOptions();
takePictures((picture) => void searchFile(picture), notify);
onPlainClick(get("home"), () => {
  if (!isEmpty(search)) go(emptySearch());
});
get("back").addEventListener("click", () => history.back());
get("copy").addEventListener("click", () => void copyLink());
get("shuffle").addEventListener("click", () => void loadIndex());
get("notice-close").addEventListener("click", () => {
  closeNotice();
  keepFocus(isEmpty(search) ? "start-title" : "results-title");
});
get("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(input("key").value.trim());
  input("key").value = "";
  closeNotice();
  const again = retry;
  retry = null;
  again?.();
  if (labels === null) void loadIndex();
});
const facts = /** @type {HTMLDetailsElement} */ (get("index"));
document.addEventListener("click", ({ target }) => {
  if (!facts.contains(/** @type {Node} */ (target))) facts.open = false;
});
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape") facts.open = false;
});
addEventListener("popstate", showAddress);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) void checkService();
});
showAddress();
void checkService();
