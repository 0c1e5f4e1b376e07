// The page: which half of it is shown, and what both share.

import { Work } from './work.js';
import { find } from './dom.js';
import { startMerge } from './merge.js';
import { startBench } from './bench.js';

const work = new Work();
globalThis.esmerge = { work };
const pages = { merge: startMerge(work), bench: startBench(work) };

function show() {
  const wanted = location.hash.slice(1) in pages ? location.hash.slice(1) : 'merge';
  for (const name of Object.keys(pages)) {
    find(name).hidden = name !== wanted;
    name === wanted ? find(`to-${name}`).setAttribute('aria-current', 'page') : find(`to-${name}`).removeAttribute('aria-current');
  }
  pages[wanted].shown?.();
}
addEventListener('hashchange', show);
show();

if (!navigator.gpu) {
  find('device').value = 'cpu';
  find('device').querySelector('[value=gpu]').disabled = true;
}
work.call('version').then((version) => (find('version').textContent = `esmerge ${version}`), () => {});

// for when there is no network; not where the page is opened for a test, or from a server that is not trusted with it
if ('serviceWorker' in navigator && !new URLSearchParams(location.search).has('fresh')) navigator.serviceWorker.register('sw.js').catch(() => {});
