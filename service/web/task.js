// @ts-check
/** Searches, of which only the latest may finish; meanwhile the page shows that it is busy. */

import { ProblemError } from "./api.js";
import { announce, get } from "./dom.js";
import { fail } from "./notice.js";

const MS_BEFORE_PROGRESS = 150;

let running = new AbortController();
let progressing = 0;

/**
 * Abort whatever is running, do this instead, and report its errors.
 *
 * @param {(signal: AbortSignal) => Promise<void>} work
 * @param {string} failure the headline if it fails
 * @param {() => void} again what to do when the service is there again
 * @param {{adds?: boolean}} [options] whether it adds to what is shown, which stays valid meanwhile
 */
export async function runAlone(work, failure, again, { adds = false } = {}) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  if (!adds) setBusy(true);
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

/** Abort whatever is running. */
export function stop() {
  running.abort();
  setBusy(false);
}

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
