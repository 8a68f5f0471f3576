// @ts-check
/**
 * Requests to the service, and its errors.
 *
 * @typedef {{fingerprint: string, input_size: number, preprocessing: number, architecture: string,
 *   weights: string, precision: string, recipe: string, recipe_fingerprint: string}} Model
 * @typedef {{id: string, label: string | null, score: number, confidence: number | null,
 *   thumbnail: string | null, metadata: Record<string, unknown>}} Match
 * @typedef {{matches: Match[], model: Model, took_ms: {total: number}}} SearchResponse
 * @typedef {{id: string, label: string | null, thumbnail: string | null,
 *   metadata?: Record<string, unknown>}} IndexedImage
 * @typedef {{label: string, count: number | null}} Label
 * @typedef {{index: string, namespace: string, count: number, store: string, metric: string,
 *   model: Model, created_at: string, version: string}} Health
 */

const KEY = "image-search key";

/** An answer of status 400 or more, or none at all: status 0 and code `offline`. */
export class ProblemError extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} detail
   */
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }

  /** Whether the same request may succeed later. */
  get passes() {
    return this.status === 0 || (this.status >= 502 && this.status <= 504);
  }
}

/**
 * The key is kept until the tab is closed.
 *
 * @param {string} key
 */
export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/**
 * @param {string} path relative to the page, so that it also works below a prefix
 * @param {{form?: FormData, json?: unknown, signal?: AbortSignal}} [options]
 * @returns {Promise<any>} the answer's JSON
 * @throws {ProblemError}
 */
export async function request(path, { form, json, signal } = {}) {
  const headers = new Headers();
  const key = sessionStorage.getItem(KEY);
  if (key !== null) headers.set("X-API-Key", key);
  if (json !== undefined) headers.set("Content-Type", "application/json");
  const body = form ?? (json === undefined ? undefined : JSON.stringify(json));
  let response;
  let answer = null;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body, signal });
    if (response.headers.get("Content-Type")?.includes("json")) answer = await response.json();
  } catch (error) {
    signal?.throwIfAborted();
    throw new ProblemError(0, "offline", "The service does not answer. Is it running?");
  }
  if (response.ok && answer !== null) return answer;
  throw new ProblemError(
    response.status,
    answer?.code ?? "unknown",
    answer?.detail ?? `The service answered ${response.status} ${response.statusText}.`,
  );
}

/** @param {string} id */
export function imagePath(id) {
  return `images/${id.split("/").map(encodeURIComponent).join("/")}`;
}
