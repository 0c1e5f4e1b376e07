// What is lost when a tab is closed: noted while it is so, and told by the page that is opened next.

const PREFIX = 'esmerge-unsaved-';
const own = PREFIX + Math.random().toString(36).slice(2);

let noted;

/** Notes what closing this tab would lose now; no text if nothing. */
export function note(text) {
  if (text === noted) return;
  noted = text;
  try {
    text ? localStorage.setItem(own, text) : localStorage.removeItem(own);
  } catch {} // a browser that keeps nothing for this page
}

addEventListener('beforeunload', (event) => {
  if (noted) event.preventDefault();
});

/** What was noted by tabs that are there no more. Each holds a lock as long as it lives. */
export async function lost() {
  if (!navigator.locks) return [];
  await new Promise((held) => navigator.locks.request(own, () => (held(), new Promise(() => {}))));
  const living = new Set((await navigator.locks.query()).held.map((lock) => lock.name));
  const gone = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX) && !living.has(name));
  const texts = gone.map((name) => localStorage.getItem(name));
  gone.forEach((name) => localStorage.removeItem(name));
  return texts;
}
