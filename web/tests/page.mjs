// The page: merging, evaluating, measuring, and what it says when something goes wrong.

import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Browser, serve } from './browser.mjs';

const ROOT = new URL('../..', import.meta.url).pathname;
const DIST = join(ROOT, 'web/dist');

/** The native program, which gives what the page is held against. */
const NATIVE = process.env.ESMERGE ?? join(ROOT, 'target/release/esmerge');

/** The number that 16 bits stand for. */
function half(bits) {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  const size = exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? Infinity : (1024 + fraction) * 2 ** (exponent - 25);
  return bits >> 15 ? -size : size;
}

/** Tensors of a safetensors file, as float32. */
function tensors(bytes) {
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + length).toString());
  const data = bytes.subarray(8 + length);
  const found = new Map();
  const { __metadata__, ...all } = header;
  for (const [name, { dtype, data_offsets: [from, to] }] of Object.entries(all)) {
    const bytes = data.buffer.slice(data.byteOffset + from, data.byteOffset + to);
    if (dtype === 'F32') found.set(name, new Float32Array(bytes));
    if (dtype === 'F16') found.set(name, Float32Array.from(new Uint16Array(bytes), half));
  }
  return found;
}

/** `||a - b|| / ||b||` over everything two models hold, and the largest difference of one number. */
function distance(a, b) {
  let [off, size, most] = [0, 0, 0];
  if (a.size !== b.size) throw new Error(`${a.size} tensors, not ${b.size}`);
  for (const [name, values] of b) {
    const own = a.get(name);
    if (own?.length !== values.length) throw new Error(`${name} is not there, or of another size`);
    values.forEach((value, i) => {
      const d = own[i] - value;
      off += d * d;
      size += value * value;
      most = Math.max(most, Math.abs(d));
    });
  }
  return { relative: Math.sqrt(off / size), most };
}

function nativeMerge(accuracy) {
  const folder = mkdtempSync(join(tmpdir(), 'esmerge-native-'));
  try {
    // the order in which the page lists the experts
    const recipe = readFileSync(join(ROOT, 'examples/vision/recipe.yaml'), 'utf8');
    const [head, rest] = recipe.split('models:\n');
    const [models, tail] = rest.split('parameters:');
    const sorted = models.split(/(?=  - model)/).sort().join('');
    const file = join(ROOT, 'examples/vision', `.sorted-${process.pid}.yaml`);
    writeFileSync(file, `${head}models:\n${sorted}parameters:${tail}`);
    try {
      execFileSync(NATIVE, ['merge', file, join(folder, 'out'), '--device', 'cpu', '--accuracy', accuracy, '-q']);
    } finally {
      rmSync(file);
    }
    const tasks = ['animals', 'digits8', 'fashion', 'letters'].map((t) => join(ROOT, `examples/vision/tasks/${t}.safetensors`));
    const said = execFileSync(NATIVE, ['eval', join(folder, 'out'), '--device', 'cpu', '--json', '-q', '--task', ...tasks]);
    const accuracies = Object.fromEntries(JSON.parse(said).tasks.map((t) => [t.task, t.value]));
    return { weights: tensors(readFileSync(join(folder, 'out/model.safetensors'))), accuracies };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const text = (id) => `document.getElementById('${id}').innerText`;
const click = (id) => `document.getElementById('${id}').click()`;
const shown = (id) => `!document.getElementById('${id}').hidden`;
const set = (id, value) => `(() => { const e = document.getElementById('${id}'); e.value = '${value}'; e.dispatchEvent(new Event('change')); })()`;

/** A page of a browser, with what it asked for; all gone afterwards. */
async function inPage(test, { hash = '', flags } = {}) {
  const server = await serve({ '': DIST });
  const browser = await Browser.start({ flags });
  try {
    const strangers = [];
    browser.listen(({ method, params }) => {
      const url = method === 'Network.requestWillBeSent' ? params.request.url : '';
      if (/^https?:/.test(url) && !url.startsWith(server.address)) strangers.push(url);
    });
    const page = await browser.open(`${server.address}/index.html?fresh${hash}`);
    const note = await test(page, browser, server);
    if (strangers.length) throw new Error(`the page asked others: ${strangers}`);
    return note;
  } finally {
    await browser.end();
    server.end();
  }
}

async function loadExample(page) {
  await page.value(click('example'));
  await page.until(`${shown('chosen')} || ${shown('alert')}`, 60, 'the example is there');
}

async function mergeExample(page, { device, accuracy }) {
  await loadExample(page);
  await page.value(set('device', device));
  await page.value(set('accuracy', accuracy));
  await page.value(set('dtype', 'float32'));
  await page.value(click('run'));
  await page.until(`${shown('merged')} || ${shown('alert')}`, 300, 'the example is merged');
  if (await page.value(shown('alert'))) throw new Error(await page.value(text('alert')));
  return weightsOf(page);
}

/** The merged weights, as somebody gets them who saves the file. */
async function weightsOf(page) {
  const base64 = await page.value(`(async () => {
    const link = [...document.querySelectorAll('#outputs a')].find((a) => a.textContent === 'model.safetensors');
    const bytes = new Uint8Array(await (await esmerge.work.call('blob', '/out/merged/model.safetensors')).arrayBuffer());
    let text = '';
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return link ? btoa(text) : '';
  })()`);
  return tensors(Buffer.from(base64, 'base64'));
}

async function accuraciesOf(page) {
  await page.value(click('evaluate'));
  await page.until(`document.querySelectorAll('#accuracies tbody tr').length === 4 && !document.getElementById('evaluate').disabled || ${shown('alert')}`, 600, 'all tasks are measured');
  const rows = await page.value(`[...document.querySelectorAll('#accuracies tbody tr')].map((tr) => [tr.cells[0].textContent, JSON.parse(tr.dataset.results)])`);
  return Object.fromEntries(rows);
}

let native;
const exact = () => (native ??= nativeMerge('exact'));

export const tests = [
  ['the_example_merges_on_the_cpu_to_the_native_weights', () => inPage(async (page) => {
    const { relative, most } = distance(await mergeExample(page, { device: 'cpu', accuracy: 'exact' }), exact().weights);
    if (!(most <= 1e-5)) throw new Error(`a weight is ${most} away from the native one`);
    const outputs = await page.value(text('outputs'));
    for (const name of ['config.json', 'README.md', 'esmerge-report.json', 'model.safetensors']) {
      if (!outputs.includes(name)) throw new Error(`${name} is not among the outputs: ${outputs}`);
    }
    const memory = await page.value(`esmerge.work.call('memory')`);
    return `${relative.toExponential(1)} away, at most ${most.toExponential(1)}; ${(memory / 2 ** 20).toFixed(0)} MiB of wasm memory`;
  })],

  ['the_example_merges_on_webgpu_moves_its_alpha_and_answers_as_the_native_one', () => inPage(async (page) => {
    const merged = await mergeExample(page, { device: 'gpu', accuracy: 'exact' });
    const { relative, most } = distance(merged, exact().weights);
    if (!(most <= 1e-4)) throw new Error(`a weight is ${most} away from the native one`);
    const found = await accuraciesOf(page);
    for (const [task, value] of Object.entries(exact().accuracies)) {
      const [accuracy, samples] = found[task].merged;
      if (Math.abs(accuracy - value) * samples > 1.01) throw new Error(`${task}: ${accuracy}, natively ${value}`);
    }
    await page.value(`(() => { document.getElementById('alpha-again').value = 0; document.getElementById('again').requestSubmit(); })()`);
    await page.until(`document.getElementById('merged-note').innerText.includes('alpha 0,') || document.getElementById('merged-note').innerText.includes('alpha 0 ') || ${shown('alert')}`, 60, 'another alpha');
    const base = tensors(readFileSync(join(ROOT, 'examples/vision/base/model.safetensors')));
    const none = distance(await weightsOf(page), base);
    if (!(none.most <= 1e-6)) throw new Error(`at alpha 0 it is ${none.most} away from the base`);
    return `${relative.toExponential(1)} away, at most ${most.toExponential(1)}`;
  })],

  ['a_file_that_is_cut_short_is_named', () => inPage(async (page) => {
    const folder = mkdtempSync(join(tmpdir(), 'esmerge-cut-'));
    try {
      const bytes = readFileSync(join(ROOT, 'examples/vision/base/model.safetensors'));
      writeFileSync(join(folder, 'broken.safetensors'), bytes.subarray(0, 100_000));
      writeFileSync(join(folder, 'nonsense.safetensors'), 'nonsense');
      await page.files('#files', ['broken.safetensors', 'nonsense.safetensors'].map((name) => join(folder, name)));
      await page.until(shown('alert'), 30, 'a word on the files');
      const said = await page.value(text('alert'));
      if (!said.includes('broken.safetensors') || !said.includes('nonsense.safetensors')) throw new Error(said);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  })],

  ['a_recipe_that_is_wrong_is_answered_in_the_librarys_words', () => inPage(async (page) => {
    await loadExample(page);
    await page.value(`(() => { const e = document.getElementById('recipe'); e.value = e.value.replace('merge_method: esm', 'merge_method: esn'); e.dispatchEvent(new Event('input')); })()`);
    await page.value(click('plan'));
    await page.until(shown('alert'), 30, 'a word on the recipe');
    const said = await page.value(text('alert'));
    if (!said.includes('esn') || !said.includes('recipe.yaml')) throw new Error(said);
  })],

  ['a_merge_that_is_stopped_leaves_nothing_and_another_can_be_made', () => inPage(async (page) => {
    await loadExample(page);
    await page.value(set('device', 'cpu'));
    await page.value(set('accuracy', 'exact'));
    await page.value(click('run'));
    await page.until(`!document.getElementById('cancel').hidden && document.getElementById('progress').value > 0`, 60, 'it has begun');
    await page.value(click('cancel'));
    await page.until(shown('alert'), 30, 'it is stopped');
    await page.value(set('method', 'task_arithmetic'));
    await page.value(click('run'));
    await page.until(`${shown('merged')} || ${shown('alert')}`, 120, 'another merge');
    if (await page.value(shown('alert'))) throw new Error(await page.value(text('alert')));
  })],

  ['every_row_of_the_bench_has_a_small_error_and_a_lost_device_is_a_row', () => inPage(async (page) => {
    await page.until(`document.getElementById('bench-kernel').options.length > 5 || ${shown('alert')}`, 60, 'the adapter is open');
    await page.value(set('bench-seconds', '0.01'));
    for (const kernel of ['pack', 'copy_block', 'layer_norm']) {
      await page.value(set('bench-kernel', kernel));
      await page.value(click('bench-all'));
      await page.until(`document.getElementById('bench-stop').hidden && ${shown('bench-copies')}`, 120, kernel);
      const report = await page.value('esmerge.bench.report()');
      const bad = report.results.filter((r) => !(r.error < 1e-5));
      if (report.format !== 'esmerge-bench-1' || report.results.length === 0 || bad.length) throw new Error(`${kernel}: ${JSON.stringify(report)}`);
    }
    await page.value(`esmerge.work.call('bench_case', 0, 0.01).then(() => {}, () => {}), esmerge.work.call('lose_gpu')`);
    await page.value(click('bench-all'));
    await page.until(`document.getElementById('bench-stop').hidden && !document.getElementById('bench-all').disabled && esmerge.bench.failures().length > 0 || ${shown('alert')}`, 120, 'the loss is told');
    const said = await page.value(text('alert')) || JSON.stringify(await page.value('esmerge.bench.failures()'));
    await page.value(click('bench-all'));
    await page.until(`document.getElementById('bench-stop').hidden && ${shown('bench-copies')} && esmerge.bench.report().results.length > 0`, 120, 'it is measured again');
    return said.slice(0, 120);
  }, { hash: '#bench' })],
];

if (!existsSync(NATIVE)) throw new Error(`${NATIVE} is not there: cargo build --release makes it, or ESMERGE names another`);
