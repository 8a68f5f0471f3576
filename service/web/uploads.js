// @ts-check
/**
 * Pictures of the user: the service embeds them, and the page keeps them until it is left.
 *
 * @import { Uploaded } from "./search.js"
 */

import { ProblemError, request } from "./api.js";
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
  const prepared = await prepare(file);
  const answers = await embed(prepared.upload, signal).catch(async (error) => {
    if (!(error instanceof ProblemError) || error.code !== "no_video_support") throw error;
    // The browser may read what the service does not.
    const { upload: frames } = await prepare(file, true);
    if (frames.length === 1) throw error;
    return embed(frames, signal);
  });
  const { preview, shown } = prepared;
  const [first, ...others] = answers;
  const embedding = encodeEmbedding(meanOf(answers.map((answer) => answer.embedding)));
  if (preview && shown) {
    const isPicture = others.length === 0 && !file.type.startsWith("video/");
    const sent = URL.createObjectURL(shown);
    uploaded.set(embedding, { sent, whole: whole ?? (isPicture ? URL.createObjectURL(file) : sent) });
  }
  const familiar = others.length === 0 ? first.familiar : null;
  return { embedding, model: modelKey(first.model), preview, familiar };
}

/**
 * @param {Blob[]} parts
 * @param {AbortSignal} signal
 */
async function embed(parts, signal) {
  signal.throwIfAborted();
  const answers = [];
  for (const part of parts) {
    const form = new FormData();
    form.append("image", part, "picture");
    answers.push(await request("embeddings", { form, signal }));
  }
  return answers;
}

/**
 * The mean direction of the embeddings of a video's frames; one alone is itself.
 *
 * @param {number[][]} embeddings
 */
function meanOf(embeddings) {
  if (embeddings.length === 1) return embeddings[0];
  const units = embeddings.map((embedding) => {
    const length = Math.hypot(...embedding);
    return embedding.map((value) => value / length);
  });
  return units[0].map((_, axis) => units.reduce((sum, unit) => sum + unit[axis], 0) / units.length);
}

/** @param {Blob} file */
export function nameOfFile(file) {
  return file instanceof File && file.name ? `“${file.name}”` : "The picture";
}
