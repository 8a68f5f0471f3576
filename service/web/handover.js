// @ts-check
/** The ways to hand a picture over: choose, photograph, paste, drop, or take an example. */

import { get, input } from "./dom.js";

/**
 * @param {(picture: Blob) => void} use
 * @param {(title: string, text: string) => void} refuse
 */
export function takePictures(use, refuse) {
  for (const [button, field] of [
    ["choose", "file"], ["choose-other", "file"], ["photograph", "camera"], ["photograph-other", "camera"],
  ]) {
    get(button).addEventListener("click", () => input(field).click());
  }
  get("drop").addEventListener("click", (event) => {
    if (!(/** @type {Element} */ (event.target).closest("button"))) input("file").click();
  });
  for (const field of ["file", "camera"]) {
    get(field).addEventListener("change", () => {
      const file = first(input(field).files);
      if (file) use(file);
      input(field).value = ""; // so that the same file can be chosen again
    });
  }
  get("examples").addEventListener("click", async (event) => {
    const image = /** @type {Element} */ (event.target).closest("button")?.querySelector("img");
    if (!image) return;
    try {
      use(await (await fetch(image.src)).blob());
    } catch {
      refuse("The example could not be loaded", "The service does not answer. Is it running?");
    }
  });
  document.addEventListener("paste", (event) => {
    const file = first(event.clipboardData?.files);
    if (!file) return; // text, which goes where it is pasted
    event.preventDefault();
    use(file);
  });
  takeDrops((file) => {
    if (file) return use(file);
    refuse(
      "That cannot be searched with",
      "Pictures of other pages cannot be fetched from here: copy the picture there and paste it here, or save it and drop the file.",
    );
  });
}

/** @param {(file: File | undefined) => void} drop */
function takeDrops(drop) {
  // Each element that is passed on the way enters and leaves.
  let entered = 0;
  /** @param {number} count */
  const setEntered = (count) => {
    entered = Math.max(0, count);
    get("overlay").hidden = entered === 0;
  };
  document.addEventListener("dragenter", (event) => {
    // Files, or a picture of another page; not text that is selected here.
    const kinds = event.dataTransfer?.types ?? [];
    if (kinds.includes("Files") || kinds.includes("text/uri-list")) setEntered(entered + 1);
  });
  document.addEventListener("dragleave", () => setEntered(entered - 1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    setEntered(0);
    drop(first(event.dataTransfer?.files));
  });
}

/** @param {FileList | null | undefined} files */
function first(files) {
  const all = [...(files ?? [])];
  return all.find(({ type }) => /^(image|video)\//.test(type)) ?? all[0];
}
