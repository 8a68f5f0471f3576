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

let waiting = 0;

/** Ask again in a while whether the service is there. */
export function waitForService() {
  clearTimeout(waiting);
  waiting = setTimeout(() => void checkService(), MS_BETWEEN_CHECKS);
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
  health.set(answer);
  tryAgain();
}

/** @param {ProblemError} problem */
function showUnavailable(problem) {
  showFacts(problem.status ? "not ready" : "offline", "bad", { Reason: sentence(problem.message) });
  if (get("notice").hidden && isEmpty(search.value)) {
    fail(problem.status ? "The service is not ready" : "The service is offline", problem);
  }
  waitForService();
}

/** @param {Health} answer */
function showAvailable({ model, ...index }) {
  const count = index.count.toLocaleString("en");
  const size = `${model.input_size} × ${model.input_size} pixels`;
  showFacts(`${count} images`, "good", {
    Index: index.index,
    Namespace: index.namespace === "__default__" ? "" : index.namespace,
    Images: count,
    Store: index.store,
    Metric: index.metric,
    Model: `${model.architecture}, ${model.weights}, ${model.precision}, ${size}`,
    Fingerprint: model.fingerprint,
    Recipe: model.recipe,
    Created: new Date(index.created_at).toLocaleString(),
    Version: index.version,
  });
}

/**
 * @param {string} summary
 * @param {"good" | "bad"} state
 * @param {Record<string, string>} facts
 */
function showFacts(summary, state, facts) {
  get("dot").className = `dot ${state}`;
  get("index-summary").textContent = summary;
  get("index-facts").replaceChildren(...Object.entries(facts).flatMap(([term, fact]) => {
    return fact ? [element("dt", {}, term), element("dd", {}, fact)] : [];
  }));
}

export function installStatus() {
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
