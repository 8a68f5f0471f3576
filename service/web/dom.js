// @ts-check
/** Short ways to what the page is made of. */

/** @param {string} id */
export function get(id) {
  return /** @type {HTMLElement} */ (document.getElementById(id));
}

/** @param {string} id */
export function input(id) {
  return /** @type {HTMLInputElement} */ (get(id));
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, unknown>} properties
 * @param {...(Node | string)} children
 */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/**
 * A link that the page follows itself, unless it is to open elsewhere.
 *
 * @param {HTMLElement} link
 * @param {() => void} action
 */
export function onPlainClick(link, action) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    action();
  });
}

/**
 * Have a screen reader say something.
 *
 * @param {string} text
 */
export function announce(text) {
  get("announcement").textContent = text;
}

/**
 * Where what had the focus is gone, move it to a heading.
 *
 * @param {string} id
 */
export function keepFocus(id) {
  const active = document.activeElement;
  const lost = !active || active === document.body || active.closest("[hidden]");
  // Not when the page has just been opened.
  if (lost && navigator.userActivation.hasBeenActive) get(id).focus({ preventScroll: true });
}

/**
 * Whether what follows a list comes into view soon.
 *
 * @param {HTMLElement} end
 */
export function isNear(end) {
  return end.getClientRects().length > 0 && end.getBoundingClientRect().top < 1.5 * innerHeight;
}

/**
 * @param {HTMLImageElement} image
 * @param {string | null | undefined} source
 */
export function setPicture(image, source) {
  if (source) image.src = source;
  else image.removeAttribute("src");
}

/**
 * A picture whose description is in the control around it.
 *
 * @param {string | null} source
 * @param {string} label
 */
export function thumbnail(source, label) {
  if (!source) {
    return element("span", { className: "no-picture", ariaHidden: "true" }, label.slice(0, 1));
  }
  return element("img", { src: source, alt: "", draggable: false, decoding: "async" });
}
