// Somebody else's page with the kernels in it: web/embed.

import { Browser, serve } from './browser.mjs';

const folder = process.env.EMBED ?? new URL('../../target/web-embed', import.meta.url).pathname;

export const tests = [
  ['an_embedders_page_computes_on_the_gpu', async () => {
    const server = await serve({ '': folder });
    const browser = await Browser.start();
    try {
      const page = await browser.open(`${server.address}/index.html`);
      const shown = `document.getElementById('table').textContent`;
      await page.until(`${shown} !== 'computing'`, 300, 'the table is there');
      const table = await page.value(shown);
      const rows = table.trim().split('\n').slice(2).map((line) => line.trim().split(/\s+/).map(parseFloat));
      const right = rows.length === 4 && rows.every(([, variance, , projected], i) => Math.abs(variance - projected) <= 2e-3 * variance && (i === 0 || variance <= rows[i - 1][1]));
      if (!right) throw new Error(table);
      return rows.map(([, variance]) => variance).join(', ');
    } finally {
      await browser.end();
      server.end();
    }
  }, { slow: true }],
];
