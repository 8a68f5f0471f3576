// @ts-check
/** How things are said. */

/** @param {{id: string, label: string | null}} image */
export function nameOf({ id, label }) {
  return label === null ? id : `${label}, ${id}`;
}

/** @param {number} share */
export function percent(share) {
  // An estimate is never certain.
  if (share > 0.99) return "> 99 %";
  return share < 0.01 ? "< 1 %" : `${Math.round(100 * share)} %`;
}

/** @param {string} text */
export function sentence(text) {
  const ended = /[.!?]$/.test(text) ? text : `${text}.`;
  return ended.charAt(0).toUpperCase() + ended.slice(1);
}
