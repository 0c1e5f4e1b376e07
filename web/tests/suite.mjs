// Every claim about the kernels, in a browser: what Tint and Dawn make of them, against float64.

import { Browser, serve } from './browser.mjs';

const [folder] = [process.env.SUITE ?? new URL('../../target/web/suite', import.meta.url).pathname];
const only = process.env.ONLY ?? '';

export const tests = [
  ['every_kernel_is_right_in_a_browser', async () => {
    const server = await serve({ '': folder });
    const browser = await Browser.start();
    try {
      const page = await browser.open(`${server.address}/index.html?only=${encodeURIComponent(only)}&from=${process.env.FROM ?? 0}`);
      const end = Date.now() + 1000 * Number(process.env.PATIENCE ?? 3000);
      await page.until(`globalThis.done || Date.now() > ${end}`, 3600, 'all claims are run');
      const results = await page.value('globalThis.results');
      if (process.env.TIMES) {
        results.sort((a, b) => b.seconds - a.seconds).slice(0, 20).forEach((r) => console.log(r.seconds.toFixed(1), r.name));
      }
      const wrong = results.filter((result) => result.error !== undefined);
      if (process.env.TIMES) wrong.forEach((r) => console.log(`${r.name}: ${r.error.slice(0, 600)}`));
      if (!(await page.value('globalThis.done'))) throw new Error(`only ${results.length} claims in time, ${wrong.length} of which do not hold`);
      if (wrong.length || (results.length < 200 && !only)) {
        throw new Error(`${wrong.length} of ${results.length} claims do not hold:\n${wrong.map((r) => `  ${r.name}: ${r.error}`).join('\n')}`);
      }
      return `${results.length} claims`;
    } finally {
      await browser.end();
      server.end();
    }
  }, { slow: true }],
];
