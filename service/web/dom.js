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
