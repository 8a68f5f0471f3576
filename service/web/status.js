// @ts-check
/**
 * Whether the service is there, and what its index is.
 *
 * @import { Health } from "./api.js"
 */

import { ProblemError, request } from "./api.js";
import { element, get } from "./dom.js";
import { fail, tryAgain } from "./notice.js";
import { isEmpty } from "./search.js";
import { health, search } from "./state.js";
import { sentence } from "./words.js";

const MS_BETWEEN_CHECKS = 2000;
// How often to look at an index that is well. Each look at Pinecone is a query that costs.
const MS_BETWEEN_LOOKS = 10_000;
const MS_BETWEEN_LOOKS_AT_PINECONE = 60_000;
// A minute, and the pause after which the look before it came.
const MS_OF_CHANGE = 75_000;

let waiting = 0;
/** @type {{at: number, count: number}[]} How many images there were, within the time of change. */
let counts = [];
let settled = () => {};

/** Ask again in a while whether the service is there. */
export function waitForService() {
  clearTimeout(waiting);
  waiting = setTimeout(() => void checkService(), MS_BETWEEN_CHECKS);
}

/** @param {Health} answer */
function lookAgain({ store }) {
  clearTimeout(waiting);
  const pause = store === "pinecone" ? MS_BETWEEN_LOOKS_AT_PINECONE : MS_BETWEEN_LOOKS;
  // Nobody sees it while the page is hidden; once it is shown, it looks at once.
  waiting = setTimeout(() => { if (!document.hidden) void checkService(); }, pause);
}

export async function checkService() {
  /** @type {Health} */
  let answer;
  try {
    answer = await request("health");
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error;
    showUnavailable(error);
    return;
  }
  showAvailable(answer);
  if (JSON.stringify(answer) !== JSON.stringify(health.value)) health.set(answer);
  tryAgain();
  lookAgain(answer);
}

/** @param {ProblemError} problem */
function showUnavailable(problem) {
  counts = [];
  showChange("");
  showFacts(problem.status ? "not ready" : "offline", "bad", { Reason: sentence(problem.message) });
  if (get("notice").hidden && isEmpty(search.value)) {
    fail(problem.status ? "The service is not ready" : "The service is offline", problem);
  }
  waitForService();
}

/** @param {Health} answer */
function showAvailable({ model, ...index }) {
  const count = index.count.toLocaleString("en");
  const change = follow(index.count);
  const size = `${model.input_size} × ${model.input_size} pixels`;
  showFacts(`${count} images`, "good", {
    Index: index.index,
    Namespace: index.namespace === "__default__" ? "" : index.namespace,
    Images: count,
    Change: change && `${change} in the last minute`,
    Store: index.store,
    Metric: index.metric,
    Model: `${model.architecture}, ${model.weights}, ${model.precision}, ${size}`,
    Fingerprint: model.fingerprint,
    Recipe: model.recipe,
    Created: new Date(index.created_at).toLocaleString(),
    Version: index.version,
  });
  showChange(change);
}

/**
 * How many images came or went in the last minute, with a sign; empty if none.
 *
 * @param {number} count
 */
function follow(count) {
  const at = Date.now();
  const before = counts.at(-1);
  const wasChanging = counts.length > 1 && counts.at(-2)?.count !== before?.count;
  counts = [...counts.filter((one) => at - one.at <= MS_OF_CHANGE), { at, count }];
  if (wasChanging && before?.count === count) settled();
  const change = count - counts[0].count;
  return change === 0 ? "" : `${change > 0 ? "+" : "−"}${Math.abs(change).toLocaleString("en")}`;
}

/** @param {string} change */
function showChange(change) {
  get("index-change").hidden = change === "";
  get("index-change-count").textContent = change;
  get("dot").classList.toggle("changing", change !== "");
}

/**
 * @param {string} summary
 * @param {"good" | "bad"} state
 * @param {Record<string, string>} facts
 */
function showFacts(summary, state, facts) {
  get("dot").className = `dot ${state}`;
  get("index-summary").textContent = summary;
  const all = JSON.stringify(facts);
  if (get("index-facts").dataset.facts === all) return; // someone may be copying them
  get("index-facts").dataset.facts = all;
  get("index-facts").replaceChildren(...Object.entries(facts).flatMap(([term, fact]) => {
    return fact ? [element("dt", {}, term), element("dd", {}, fact)] : [];
  }));
}

/** @param {{settled: () => void}} actions what to do once images have come or gone */
export function installStatus(actions) {
  settled = actions.settled;
  const facts = /** @type {HTMLDetailsElement} */ (get("index"));
  document.addEventListener("click", ({ target }) => {
    if (!facts.contains(/** @type {Node} */ (target))) facts.open = false;
  });
  document.addEventListener("keydown", ({ key }) => {
    if (key === "Escape") facts.open = false;
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) void checkService();
  });
  void checkService();
}
