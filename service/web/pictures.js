// @ts-check
/** Pictures in the browser: made small before they are uploaded, and tiny for links. */

import { element } from "./dom.js";

// The network sees far fewer pixels than this; photos of phones are some ten times as large.
const MAX_SIDE = 1024;
const MAX_BYTES = 500_000;
const MAX_SIDE_AS_IT_IS = 4096;
// The largest that fits is taken: a noisy picture needs more characters.
const PREVIEW_SIDES = [96, 64, 40, 24];
const MAX_PREVIEW_CHARACTERS = 4000;
// What the service takes by itself, less the rest of the request.
const MAX_VIDEO_BYTES = 20_000_000;
const MS_FOR_A_FRAME = 10_000;
const MIDDLE = 0.5;
const SHARES_OF_A_LARGE_VIDEO = Array.from({ length: 16 }, (_, number) => (number + MIDDLE) / 16);

/**
 * What to upload of a file, its preview as a data URI, and what to show of it. A file that the
 * browser cannot read is uploaded as it is: the service reads more formats, or says what is wrong.
 * So is a video, unless it is a large one: of that some frames are.
 *
 * @param {Blob} file
 * @param {boolean} [asFrames] whether frames of any video are wanted
 * @returns {Promise<{upload: Blob[], preview: string | null, shown: Blob | null}>}
 */
export async function prepare(file, asFrames = file.size > MAX_VIDEO_BYTES) {
  const { upload, preview: tiny, shown } = await preparePicture(file);
  if (tiny || !file.type.startsWith("video/")) return { upload: [upload], preview: tiny, shown };
  return prepareVideo(file, asFrames);
}

/**
 * @param {Blob} file
 * @param {boolean} asFrames
 */
async function prepareVideo(file, asFrames) {
  const frames = [];
  const times = asFrames ? SHARES_OF_A_LARGE_VIDEO : [MIDDLE];
  const source = URL.createObjectURL(file);
  const video = element("video", { muted: true, playsInline: true, preload: "auto", src: source });
  try {
    await happens(video, "loadeddata");
    // Recordings of browsers do not say how long they are.
    const length = Number.isFinite(video.duration) ? video.duration : 0;
    for (const share of times) {
      video.currentTime = share * length;
      await happens(video, "seeked");
      const { videoWidth: width, videoHeight: height } = video;
      const drawn = draw(video, MAX_SIDE, { left: 0, top: 0, width, height });
      frames.push(await new Promise((resolve) => drawn.toBlob(resolve, "image/jpeg", 0.92)));
    }
  } catch {
    return { upload: [file], preview: null, shown: null };
  } finally {
    video.removeAttribute("src");
    URL.revokeObjectURL(source);
  }
  const shown = frames[Math.floor(frames.length / 2)];
  const { preview: tiny } = await preparePicture(shown);
  return { upload: frames.length > 1 ? frames : [file], preview: tiny, shown };
}

/**
 * Wait for an event of a video.
 *
 * @param {HTMLVideoElement} video
 * @param {string} name
 */
function happens(video, name) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(reject, MS_FOR_A_FRAME);
    const end = (/** @type {(value: unknown) => void} */ then) => (/** @type {Event} */ event) => {
      clearTimeout(timer);
      then(event);
    };
    video.addEventListener(name, end(resolve), { once: true });
    video.addEventListener("error", end(reject), { once: true });
  });
}

/**
 * @param {Blob} file
 * @returns {Promise<{upload: Blob, preview: string | null, shown: Blob | null}>}
 */
async function preparePicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return { upload: file, preview: null, shown: null };
  }
  try {
    const large = file.size > MAX_BYTES || Math.max(bitmap.width, bitmap.height) > MAX_SIDE_AS_IT_IS;
    const upload = large ? await shrunk(bitmap, file) : file;
    return { upload, preview: preview(bitmap), shown: upload };
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
 * @param {ImageBitmap | HTMLImageElement | HTMLVideoElement} image
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
