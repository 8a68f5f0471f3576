// @ts-check
/** The message at the top of the page: errors, the question for a key, and what is tried again. */

import { ProblemError, hasKey, setKey } from "./api.js";
import { get, input, keepFocus } from "./dom.js";
import { sentence } from "./words.js";

/** @type {(() => void) | null} What failed, and is done again when the service is there. */
let failed = null;
/** @type {() => void} */
let waitForService = () => {};

/**
 * @param {string} title
 * @param {string} text
 * @param {{needsKey?: boolean}} [options]
 */
export function notify(title, text, { needsKey = false } = {}) {
  get("notice-title").textContent = title;
  get("notice-text").textContent = text;
  get("key-form").hidden = !needsKey;
  get("notice").classList.toggle("asks", needsKey);
  get("notice").hidden = false;
  if (needsKey) get("key").focus();
}

export function closeNotice() {
  get("notice").hidden = true;
}

/**
 * Report an error. Where it passes by itself, the page waits for the service and tries again.
 *
 * @param {string} title
 * @param {ProblemError} problem
 * @param {() => void} [again]
 */
export function fail(title, problem, again = failed ?? (() => {})) {
  failed = again;
  if (problem.status === 401) {
    notify(
      hasKey() ? "This key is not accepted" : "This service needs a key",
      hasKey() ? sentence(problem.message) : "Ask its operator for one. It is kept until this tab is closed.",
      { needsKey: true },
    );
  } else if (problem.passes) {
    notify(title, `${sentence(problem.message)} The page keeps trying.`);
    waitForService();
  } else {
    notify(title, sentence(problem.message));
  }
}

/** Do again what failed. */
export function tryAgain() {
  if (failed === null) return;
  const again = failed;
  failed = null;
  closeNotice();
  again();
}

/** There is something else to do now: forget what failed. */
export function giveUp() {
  failed = null;
  closeNotice();
}

/**
 * @param {{wait: () => void, useKey: () => void}} actions how to wait for the service, and what to
 *   do with a new key
 */
export function installNotice({ wait, useKey }) {
  waitForService = wait;
  get("notice-close").addEventListener("click", () => {
    closeNotice();
    keepFocus(get("start").hidden ? "results-title" : "start-title");
  });
  get("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setKey(input("key").value.trim());
    input("key").value = "";
    closeNotice();
    tryAgain();
    useKey();
  });
}
