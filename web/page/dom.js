// Small helpers for the page.

export const find = (id) => document.getElementById(id);

/** An element with attributes and children; text is never taken for markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'on') Object.entries(value).forEach(([event, run]) => made.addEventListener(event, run));
    else if (value !== undefined && value !== false) made.setAttribute(key, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== undefined));
  return made;
}

/** A row of a table; a number goes to the right. */
export function row(...cells) {
  const cell = (value) => {
    if (value instanceof Node) return value.nodeName === 'TD' ? value : element('td', {}, value);
    return typeof value === 'object' ? element('td', { class: value.class }, value.text) : element('td', {}, value ?? '');
  };
  return element('tr', {}, ...cells.map(cell));
}

export const number = (text) => ({ text, class: 'number' });

export function bytes(count) {
  const [size, unit] = [[1e9, 'GB'], [1e6, 'MB'], [1e3, 'kB'], [1, 'bytes']].find(([size]) => count >= size) ?? [1, 'bytes'];
  return `${(count / size).toFixed(size > 1 ? 1 : 0)} ${unit}`;
}

export function time(seconds) {
  if (seconds < 1e-3) return `${three(seconds * 1e6)} µs`;
  if (seconds < 1) return `${three(seconds * 1e3)} ms`;
  return seconds < 100 ? `${three(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

/** Three digits. */
export const three = (value) => value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Says what went wrong, where it is heard. */
export function alertOf(error) {
  const place = find('alert');
  place.hidden = !error;
  place.textContent = error ? (error.message ?? String(error)) : '';
  if (error) place.scrollIntoView({ block: 'nearest' });
}
