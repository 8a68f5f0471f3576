// @ts-check
/**
 * Pictures of the user: the service embeds them, and the page keeps them until it is left.
 *
 * @import { Uploaded } from "./search.js"
 */

import { request } from "./api.js";
import { prepare } from "./pictures.js";
import { encodeEmbedding, modelKey } from "./search.js";

/**
 * The addresses of the pictures that were uploaded, by embedding: what was sent, and the whole
 * picture that it is a part of, or itself.
 *
 * @type {Map<string, {sent: string, whole: string}>}
 */
export const uploaded = new Map();

/**
 * @param {Blob} file
 * @param {AbortSignal} signal
 * @param {string | null} [whole] address of the picture that it is a part of
 * @returns {Promise<Uploaded>}
 */
export async function upload(file, signal, whole = null) {
  const { upload: sent, preview } = await prepare(file);
  signal.throwIfAborted();
  const form = new FormData();
  form.append("image", sent, "picture");
  const answer = await request("embeddings", { form, signal });
  const embedding = encodeEmbedding(answer.embedding);
  if (preview) {
    uploaded.set(embedding, {
      sent: URL.createObjectURL(sent),
      whole: whole ?? URL.createObjectURL(file),
    });
  }
  return { embedding, model: modelKey(answer.model), preview, familiar: answer.familiar };
}

/** @param {Blob} file */
export function nameOfFile(file) {
  return file instanceof File && file.name ? `“${file.name}”` : "The picture";
}
