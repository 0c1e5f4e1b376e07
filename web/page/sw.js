// Keeps the page for when there is no network. What it keeps has a name made of its contents.

const NAME = 'esmerge-%VERSION%';
const FILES = [/* FILES */];

addEventListener('install', (event) => event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(['./', ...FILES])).then(() => skipWaiting())));

addEventListener('activate', (event) => {
  const old = async () => (await caches.keys()).filter((name) => name.startsWith('esmerge-') && name !== NAME);
  event.waitUntil(old().then((names) => Promise.all(names.map((name) => caches.delete(name)))).then(() => clients.claim()));
});

// the example is kept once it was asked for
addEventListener('fetch', (event) => {
  if (event.request.method !== 'GET' || !event.request.url.startsWith(registration.scope)) return;
  event.respondWith(caches.match(event.request, { ignoreSearch: true, cacheName: NAME }).then(async (kept) => {
    if (kept) return kept;
    const found = await fetch(event.request);
    if (found.ok && event.request.url.includes('/example/')) await (await caches.open(NAME)).put(event.request, found.clone());
    return found;
  }));
});
