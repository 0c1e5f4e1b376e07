// What the pages look like to those who see them, and to those who do not: axe-core's rules, nothing wider than the screen, and pictures
// in the folder that LOOKS names.

import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Browser, serve } from './browser.mjs';
import { NATIVE, ROOT, accuraciesOf, choose, click, inPage, loadExample, mergedOrWhy, set, shown } from './page.mjs';

const AXE = 'axe-core@4.10.3';

/** The rules, which npm gets once. */
function rules() {
  const folder = join(ROOT, 'target/axe');
  const file = join(folder, 'package/axe.min.js');
  if (!existsSync(file)) {
    mkdirSync(folder, { recursive: true });
    const packed = execFileSync('npm', ['pack', '--silent', AXE], { cwd: folder, encoding: 'utf8' }).trim();
    execFileSync('tar', ['xzf', packed, 'package/axe.min.js'], { cwd: folder });
  }
  return readFileSync(file, 'utf8');
}

/** Looks at a page at two widths and in two themes. */
async function look(page, name) {
  await page.value(`${rules()}; undefined`);
  for (const width of [390, 1280]) {
    for (const dark of [false, true]) {
      await page.look({ width, dark });
      const wide = await page.value('document.documentElement.scrollWidth');
      if (wide > width) throw new Error(`${name} is ${wide} pixels wide on a screen of ${width}`);
      const found = await page.value(`axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations
        .filter((v) => ['serious', 'critical'].includes(v.impact))
        .map((v) => v.id + ': ' + v.help + ': ' + v.nodes.slice(0, 5).map((n) => n.html.slice(0, 160) + ' ' + n.any.map((a) => a.message).join(' ')).join(' | ')))`);
      if (found.length) throw new Error(`${name}, ${width} pixels, ${dark ? 'dark' : 'light'}:\n${found.join('\n')}`);
      if (process.env.LOOKS) await page.picture(join(process.env.LOOKS, `${name}-${width}-${dark ? 'dark' : 'light'}.png`));
    }
  }
}

const run = (...words) => execFileSync(NATIVE, [...words, '-q'], { encoding: 'utf8', maxBuffer: 1 << 28 });

export const tests = [
  ['the_merge_page_has_no_serious_fault', () => inPage(async (page) => {
    await look(page, 'empty');
    await loadExample(page);
    await choose(page, { device: 'cpu' });
    await page.value(click('run'));
    await mergedOrWhy(page, 300);
    await accuraciesOf(page);
    await look(page, 'merge');
    await page.value(`(() => { const e = document.getElementById('recipe'); e.closest('details').open = true; e.value = 'nonsense'; e.dispatchEvent(new Event('input')); })()`);
    await page.value(click('plan'));
    await page.until(shown('alert'), 30, 'a word on the recipe');
    await look(page, 'wrong');
  }), { slow: true }],

  ['the_bench_page_has_no_serious_fault', () => inPage(async (page) => {
    await page.until(`document.getElementById('bench-kernel').options.length > 5 || ${shown('alert')}`, 60, 'the adapter is open');
    await page.value(set('bench-seconds', '0.01'));
    await page.value(set('bench-kernel', 'layer_norm'));
    for (const again of [false, true]) {
      if (again) await page.value(click('keep'));
      await page.value(click('bench-all'));
      await page.until(`document.getElementById('bench-stop').hidden && ${shown('bench-copies')}`, 120, 'it is measured');
    }
    await look(page, 'bench');
  }, { hash: '#bench' }), { slow: true }],

  ['the_reports_page_has_the_numbers_of_its_json_and_no_serious_fault', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'esmerge-looks-'));
    const merges = { example: join(ROOT, 'examples/vision/recipe.yaml') };
    const family = join(ROOT, '../shared/family/minilm');
    if (existsSync(family)) {
      const names = ['emotion', 'sst2', 'subj', 'trec'];
      merges.minilm = join(folder, 'minilm.yaml');
      const experts = names.map((name) => `  - model: ${join(family, 'base')}+delta:${join(family, 'experts', name)}.delta.safetensors\n`).join('');
      writeFileSync(merges.minilm, `merge_method: tsv_m\nbase_model: ${join(family, 'base')}\nmodels:\n${experts}`);
    }
    const browser = await Browser.start();
    const server = await serve({ '': folder });
    try {
      for (const [name, recipe] of Object.entries(merges)) {
        const [out, html] = [join(folder, name), join(folder, `${name}.html`)];
        run('merge', recipe, out, '--device', 'cpu');
        const more = [];
        if (name === 'example') {
          const tasks = ['animals', 'digits8', 'fashion', 'letters'].map((t) => join(ROOT, `examples/vision/tasks/${t}.safetensors`));
          writeFileSync(join(folder, 'eval.json'), run('eval', out, '--device', 'cpu', '--json', '--experts', recipe, '--task', ...tasks));
          more.push('--eval', join(folder, 'eval.json'));
        }
        run('inspect', out, '--html', html, ...more);
        const page = await browser.open(`${server.address}/${name}.html`);
        const report = JSON.parse(readFileSync(join(out, 'esmerge-report.json'), 'utf8'));
        const layers = report.layers.filter((layer) => layer.norm !== undefined);
        const rows = await page.value(`[...document.querySelectorAll('details tbody tr')].map((tr) => [...tr.cells].map((cell) => cell.textContent))`);
        if (rows.length !== layers.length || rows.length === 0) throw new Error(`${name}: ${rows.length} rows for ${layers.length} layers`);
        layers.forEach((layer, i) => {
          const [title, , norm, beta, kept] = rows[i];
          const shares = Object.entries(layer.energy_retention ?? {});
          const same = title === layer.name && Number(norm) === layer.norm && (beta === '' ? layer.beta == null : Number(beta) === layer.beta);
          const read = kept === '' ? [] : kept.split(', ').map((text) => [text.slice(0, text.lastIndexOf(' ')), Number(text.slice(text.lastIndexOf(' ') + 1))]);
          if (!same || JSON.stringify(read) !== JSON.stringify(shares)) throw new Error(`${name}: the row ${rows[i]} is not ${JSON.stringify(layer)}`);
        });
        await look(page, `report-${name}`);
        await page.close();
      }
    } finally {
      await browser.end();
      server.end();
      rmSync(folder, { recursive: true, force: true });
    }
  }, { slow: true }],
];
