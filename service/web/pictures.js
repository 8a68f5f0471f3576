// @ts-check
/** Pictures in the browser: made small before they are uploaded, and tiny for links. */

// The network sees far fewer pixels than this; photos of phones are some ten times as large.
const MAX_SIDE = 1024;
const MAX_BYTES = 500_000;
const MAX_SIDE_AS_IT_IS = 4096;
const PREVIEW_SIDE = 96;
const MAX_PREVIEW_CHARACTERS = 4000;

/**
 * What to upload of a file, and its preview as a data URI. A file that the browser cannot read is
 * uploaded as it is: the service reads more formats, or says what is wrong.
 *
 * @param {Blob} file
 * @returns {Promise<{upload: Blob, preview: string | null}>}
 */
export async function prepare(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return { upload: file, preview: null };
  }
  try {
    const large = file.size > MAX_BYTES || Math.max(bitmap.width, bitmap.height) > MAX_SIDE_AS_IT_IS;
    return { upload: large ? await shrunk(bitmap, file) : file, preview: preview(bitmap) };
  } finally {
    bitmap.close();
  }
}

/**
 * @param {ImageBitmap} bitmap
 * @param {Blob} file
 * @returns {Promise<Blob>}
 */
async function shrunk(bitmap, file) {
  // JPEG has no transparency.
  const type = file.type === "image/jpeg" ? "image/jpeg" : "image/png";
  const drawn = draw(bitmap, MAX_SIDE);
  const blob = await new Promise((resolve) => drawn.toBlob(resolve, type, 0.92));
  return blob instanceof Blob ? blob : file;
}

/** @param {ImageBitmap} bitmap */
function preview(bitmap) {
  const drawn = draw(bitmap, PREVIEW_SIDE);
  // Browsers that cannot write WebP answer with PNG.
  let uri = drawn.toDataURL("image/webp", 0.7);
  if (!uri.startsWith("data:image/webp")) uri = drawn.toDataURL("image/jpeg", 0.6);
  return uri.length <= MAX_PREVIEW_CHARACTERS ? uri : null;
}

/**
 * @param {ImageBitmap} bitmap
 * @param {number} maxSide
 */
function draw(bitmap, maxSide) {
  const scale = Math.min(1, maxSide / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}
