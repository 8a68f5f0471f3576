// @ts-check
/** Pictures in the browser: made small before they are uploaded, and tiny for links. */

// The network sees far fewer pixels than this; photos of phones are some ten times as large.
const MAX_SIDE = 1024;
const MAX_BYTES = 500_000;
const MAX_SIDE_AS_IT_IS = 4096;
// The largest that fits is taken: a noisy picture needs more characters.
const PREVIEW_SIDES = [96, 64, 40, 24];
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
  const drawn = draw(bitmap, MAX_SIDE, whole(bitmap));
  const blob = await new Promise((resolve) => drawn.toBlob(resolve, type, 0.92));
  return blob instanceof Blob ? blob : file;
}

/** @param {ImageBitmap} bitmap */
function preview(bitmap) {
  for (const side of PREVIEW_SIDES) {
    const drawn = draw(bitmap, side, whole(bitmap));
    // Browsers that cannot write WebP answer with PNG.
    let uri = drawn.toDataURL("image/webp", 0.7);
    if (!uri.startsWith("data:image/webp")) uri = drawn.toDataURL("image/jpeg", 0.6);
    if (uri.length <= MAX_PREVIEW_CHARACTERS) return uri;
  }
  return null;
}

/**
 * A part of a picture that is shown, as a file.
 *
 * @param {HTMLImageElement} image
 * @param {import("./crop.js").Frame} frame
 * @returns {Promise<Blob>}
 */
export async function cut(image, frame) {
  await image.decode();
  const { naturalWidth, naturalHeight } = image;
  const left = Math.floor(frame.left * naturalWidth);
  const top = Math.floor(frame.top * naturalHeight);
  const width = Math.max(1, Math.round(frame.width * naturalWidth));
  const height = Math.max(1, Math.round(frame.height * naturalHeight));
  const drawn = draw(image, MAX_SIDE, { left, top, width, height });
  return new Promise((resolve, reject) => {
    drawn.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no canvas"))), "image/webp", 0.95);
  });
}

/**
 * @param {ImageBitmap | HTMLImageElement} image
 * @param {number} maxSide
 * @param {{left: number, top: number, width: number, height: number}} part in pixels of the image
 */
function draw(image, maxSide, { left, top, width, height }) {
  const scale = Math.min(1, maxSide / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  context.drawImage(image, left, top, width, height, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** @param {ImageBitmap} bitmap */
function whole({ width, height }) {
  return { left: 0, top: 0, width, height };
}
