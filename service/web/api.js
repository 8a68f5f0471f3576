// @ts-check
/**
 * Requests to the service, and its errors.
 *
 * @typedef {{fingerprint: string, input_size: number, preprocessing: number, architecture: string,
 *   weights: string, precision: string, recipe: string, recipe_fingerprint: string}} Model
 * @typedef {{id: string, label: string | null, score: number, confidence: number | null,
 *   thumbnail: string | null, metadata: Record<string, unknown>, video: string | null,
 *   time: number | null, moments: Moment[]}} Match
 * @typedef {{id: string, time: number | null, score: number, confidence: number | null}} Moment
 * @typedef {{matches: Match[], model: Model, took_ms: {total: number}}} SearchResponse
 * @typedef {{id: string, label: string | null, thumbnail: string | null,
 *   metadata?: Record<string, unknown>}} IndexedImage
 * @typedef {{label: string, count: number | null}} Label
 * @typedef {{index: string, namespace: string, count: number, store: string, metric: string,
 *   model: Model, created_at: string, version: string, originals: boolean}} Health
 */

import { store, stored } from "./storage.js";

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
  store("sessionStorage", KEY, key);
}

export function hasKey() {
  return stored("sessionStorage", KEY) !== null;
}

/**
 * @param {string} path relative to the page, so that it also works below a prefix
 * @param {{form?: FormData, json?: unknown, signal?: AbortSignal}} [options]
 * @returns {Promise<any>} the answer's JSON
 * @throws {ProblemError}
 */
export async function request(path, { form, json, signal } = {}) {
  const headers = new Headers();
  const key = stored("sessionStorage", KEY);
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
  return `images/${inPath(id)}`;
}

/** @param {string} id */
export function originalPath(id) {
  return `originals/${inPath(id)}`;
}

/** @param {string} id */
function inPath(id) {
  return id.split("/").map(encodeURIComponent).join("/");
}

/**
 * An original, for a service that wants a key: what shows it could not send one.
 *
 * @param {string} path
 * @returns {Promise<Blob | null>}
 */
export async function fetchOriginal(path) {
  const response = await ask(path, {});
  return response?.ok ? response.blob() : null;
}

/**
 * Why an original is not given; null where it is.
 *
 * @param {string} path
 * @returns {Promise<string | null>}
 */
export async function originalProblem(path) {
  const response = await ask(path, { Range: "bytes=0-0" });
  if (response === null) return "The service does not answer. Is it running?";
  return response.ok ? null : (await response.json().catch(() => null))?.detail ?? response.statusText;
}

/**
 * @param {string} path
 * @param {Record<string, string>} fields
 */
async function ask(path, fields) {
  const headers = new Headers(fields);
  const key = stored("sessionStorage", KEY);
  if (key !== null) headers.set("X-API-Key", key);
  return fetch(path, { headers }).catch(() => null);
}
