// @ts-check
/**
 * What is searched for or compared, and how the address tells it. Everything is in the fragment,
 * which is never sent to the server: `#id=…` or `#embedding=…&model=…&preview=…`, then examples and
 * options; for a comparison `#compare&a.id=…&b.id=…`, or the others with `a.` and `b.`; and
 * `#browse&label=…&words=…&sort=…&from=…&to=…` for what is browsed.
 *
 * @typedef {{id: string}} Indexed An image of the index.
 * @typedef {{embedding: string, model: string, preview: string | null, familiar: boolean | null}}
 *   Uploaded A picture that was uploaded: its embedding (512 little-endian float32 in base64url), the
 *   model that computed it, a tiny picture (data URI), and whether the index has anything like it.
 * @typedef {{topK: number, labels: string[], minConfidence: number,
 *   deduplicate: boolean, eachVideo: boolean}} Options `eachVideo`: each video is found once.
 * @typedef {{query: Indexed | Uploaded | null, positive: string[], negative: string[]} & Options}
 *   Search
 * @typedef {{a: Indexed | Uploaded | null, b: Indexed | Uploaded | null}} Pair Two to compare.
 * @typedef {{labels: string[], words: string, sort: string, from: string, to: string}} Browse Which
 *   images are browsed: their labels, words, order, and the days between which they were taken.
 */

export const MAX_EXAMPLES = 16;
export const MAX_TOP_K = 100;
const DIMENSION = 512;
const RANDOM_AXES = 8;
const PAGE = 60;
const MS_OF_A_DAY = 86_400_000;
const ORDERS = new Set(["", "-taken", "taken", "label", "-modified"]);
const PREVIEW = /^data:image\/(webp|jpeg);base64,([A-Za-z0-9+/]+=*)$/;

/** A link that was cut off or changed. */
export class LinkError extends Error {}

/** @returns {Options} */
export function defaultOptions() {
  return { topK: 24, labels: [], minConfidence: 0, deduplicate: false, eachVideo: true };
}

/** @returns {Search} */
export function emptySearch() {
  return { query: null, positive: [], negative: [], ...defaultOptions() };
}

/** @param {Search} search */
export function isEmpty(search) {
  return search.query === null && search.positive.length === 0;
}

/**
 * A new query with the options of an old one; its examples belonged to the old query.
 *
 * @param {Indexed | Uploaded} query
 * @param {Search} old
 * @returns {Search}
 */
export function withQuery(query, old) {
  return { ...old, query, positive: [], negative: [] };
}

/**
 * Whether the search is known to be for a picture that nothing of the index is like.
 *
 * @param {Search} search
 */
export function isUnfamiliar({ query, positive, negative }) {
  const alone = positive.length === 0 && negative.length === 0;
  return alone && query !== null && "familiar" in query && query.familiar === false;
}

/** @param {Search} search */
export function toFragment(search) {
  if (isEmpty(search)) return "";
  const fields = new URLSearchParams();
  if (search.query) append(fields, "", search.query);
  for (const id of search.positive) fields.append("positive", id);
  for (const id of search.negative) fields.append("negative", id);
  const usual = defaultOptions();
  if (search.topK !== usual.topK) fields.append("top_k", `${search.topK}`);
  for (const label of search.labels) fields.append("label", label);
  if (search.minConfidence) fields.append("min_confidence", `${search.minConfidence}`);
  if (search.deduplicate) fields.append("deduplicate", "true");
  if (!search.eachVideo) fields.append("group_by", "none");
  return `#${fields}`;
}

/**
 * @param {string} fragment
 * @returns {Search}
 * @throws {LinkError}
 */
export function fromFragment(fragment) {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  const usual = defaultOptions();
  return {
    query: read(fields, ""),
    positive: fields.getAll("positive").slice(0, MAX_EXAMPLES),
    negative: fields.getAll("negative").slice(0, MAX_EXAMPLES),
    topK: Math.round(within(fields.get("top_k"), 1, MAX_TOP_K, usual.topK)),
    labels: fields.getAll("label"),
    minConfidence: within(fields.get("min_confidence"), 0, 1, usual.minConfidence),
    deduplicate: fields.get("deduplicate") === "true",
    eachVideo: fields.get("group_by") !== "none",
  };
}

/** @param {Pair} pair */
export function pairToFragment({ a, b }) {
  const fields = new URLSearchParams();
  if (a) append(fields, "a.", a);
  if (b) append(fields, "b.", b);
  return `#compare&${fields}`.replace(/&$/, "");
}

/**
 * The pair of a fragment; null if it holds a search.
 *
 * @param {string} fragment
 * @returns {Pair | null}
 * @throws {LinkError}
 */
export function pairFromFragment(fragment) {
  if (!/^#compare(&|$)/.test(fragment)) return null;
  const fields = new URLSearchParams(fragment.slice(1));
  return { a: read(fields, "a."), b: read(fields, "b.") };
}

/** @returns {Browse} */
export function emptyBrowse() {
  return { labels: [], words: "", sort: "", from: "", to: "" };
}

/** @param {Browse} browse */
export function browseToFragment({ labels, ...texts }) {
  const fields = new URLSearchParams();
  for (const label of labels) fields.append("label", label);
  for (const [name, text] of Object.entries(texts)) if (text) fields.append(name, text);
  return `#browse&${fields}`.replace(/&$/, "");
}

/**
 * What a fragment browses; null if it holds a search.
 *
 * @param {string} fragment
 * @returns {Browse | null}
 */
export function browseFromFragment(fragment) {
  if (!/^#browse(&|$)/.test(fragment)) return null;
  const fields = new URLSearchParams(fragment.slice(1));
  const sort = fields.get("sort") ?? "";
  return {
    labels: fields.getAll("label"),
    words: fields.get("words") ?? "",
    sort: ORDERS.has(sort) ? sort : "",
    from: dayOf(fields.get("from")),
    to: dayOf(fields.get("to")),
  };
}

/**
 * The query string of `GET /images`.
 *
 * @param {Browse} browse
 */
export function toListing({ labels, words, sort, from, to }) {
  const fields = new URLSearchParams({ thumbnails: "true", limit: `${PAGE}` });
  for (const label of labels) fields.append("label", label);
  if (words) fields.append("words", words);
  if (sort) fields.append("sort", sort);
  /** @type {Record<string, string>} */
  const taken = {};
  if (from) taken.$gte = from;
  if (to) taken.$lt = dayAfter(to);
  if (from || to) fields.append("filter", JSON.stringify({ taken }));
  return fields;
}

/** @param {string | null} text */
function dayOf(text) {
  return text && /^\d{4}-\d\d-\d\d$/.test(text) && !Number.isNaN(Date.parse(text)) ? text : "";
}

/** @param {string} text */
function dayAfter(text) {
  return new Date(Date.parse(text) + MS_OF_A_DAY).toISOString().slice(0, 10);
}

/**
 * @param {URLSearchParams} fields
 * @param {string} prefix
 * @param {Indexed | Uploaded} image
 */
function append(fields, prefix, image) {
  if ("id" in image) {
    fields.append(`${prefix}id`, image.id);
    return;
  }
  fields.append(`${prefix}embedding`, image.embedding);
  fields.append(`${prefix}model`, image.model);
  const preview = PREVIEW.exec(image.preview ?? "");
  if (preview) fields.append(`${prefix}preview`, `${preview[1]}.${toUrlAlphabet(preview[2])}`);
  if (image.familiar === false) fields.append(`${prefix}familiar`, "false");
}

/**
 * @param {URLSearchParams} fields
 * @param {string} prefix
 * @returns {Indexed | Uploaded | null}
 * @throws {LinkError}
 */
function read(fields, prefix) {
  const id = fields.get(`${prefix}id`);
  if (id !== null) return { id };
  const embedding = fields.get(`${prefix}embedding`);
  if (embedding === null) return null;
  decodeEmbedding(embedding);
  const preview = /^(webp|jpeg)\.([\w-]+)$/.exec(fields.get(`${prefix}preview`) ?? "");
  return {
    embedding,
    model: fields.get(`${prefix}model`) ?? "",
    preview: preview && `data:image/${preview[1]};base64,${fromUrlAlphabet(preview[2])}`,
    familiar: fields.get(`${prefix}familiar`) === "false" ? false : null,
  };
}

/**
 * An image as an example of `POST /query` and `POST /compare`.
 *
 * @param {Indexed | Uploaded} image
 */
export function toExample(image) {
  return "id" in image ? { id: image.id } : { embedding: decodeEmbedding(image.embedding) };
}

/**
 * The body of `POST /query`.
 *
 * @param {Search} search
 * @returns {Record<string, unknown>}
 */
export function toBody(search) {
  /** @type {Record<string, unknown>} */
  const body = { ...(search.query && toExample(search.query)), top_k: search.topK };
  if (search.positive.length) body.positive = search.positive.map((id) => ({ id }));
  if (search.negative.length) body.negative = search.negative.map((id) => ({ id }));
  if (search.labels.length) body.labels = search.labels;
  if (search.minConfidence) body.min_confidence = search.minConfidence;
  if (search.deduplicate) body.deduplicate = true;
  if (search.eachVideo) body.group_by = "video";
  return body;
}

/**
 * What has to be equal for embeddings to be comparable.
 *
 * @param {import("./api.js").Model} model
 */
export function modelKey({ fingerprint, input_size, preprocessing, recipe_fingerprint }) {
  return [fingerprint, input_size, preprocessing, recipe_fingerprint].filter(Boolean).join("-");
}

/** @param {number[]} embedding */
export function encodeEmbedding(embedding) {
  const view = new DataView(new ArrayBuffer(4 * DIMENSION));
  embedding.forEach((value, i) => view.setFloat32(4 * i, value, true));
  return toUrlAlphabet(btoa(String.fromCharCode(...new Uint8Array(view.buffer))));
}

/**
 * Something to ask an index with for any of its images: a direction along a few random axes.
 */
export function randomEmbedding() {
  const embedding = Array.from({ length: DIMENSION }, () => 0);
  for (let i = 0; i < RANDOM_AXES; i += 1) {
    embedding[Math.floor(DIMENSION * Math.random())] = Math.random() < 0.5 ? -1 : 1;
  }
  return embedding;
}

/**
 * @param {string} text
 * @returns {number[]}
 * @throws {LinkError}
 */
function decodeEmbedding(text) {
  const damaged = new LinkError("The link is damaged: a part of it is missing or changed.");
  let bytes;
  try {
    bytes = Uint8Array.from(atob(fromUrlAlphabet(text)), (char) => char.charCodeAt(0));
  } catch {
    throw damaged;
  }
  if (bytes.length !== 4 * DIMENSION) throw damaged;
  const view = new DataView(bytes.buffer);
  const embedding = Array.from({ length: DIMENSION }, (_, i) => view.getFloat32(4 * i, true));
  if (!embedding.every(Number.isFinite)) throw damaged;
  return embedding;
}

/** @param {string} base64 */
function toUrlAlphabet(base64) {
  return base64.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** @param {string} base64url */
function fromUrlAlphabet(base64url) {
  return base64url.replaceAll("-", "+").replaceAll("_", "/");
}

/**
 * @param {string | null} text
 * @param {number} least
 * @param {number} most
 * @param {number} otherwise
 */
function within(text, least, most, otherwise) {
  const number = Number.parseFloat(text ?? "");
  return Number.isFinite(number) ? Math.min(most, Math.max(least, number)) : otherwise;
}
