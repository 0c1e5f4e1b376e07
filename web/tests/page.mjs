// The page: merging, evaluating, measuring, and what it says when something goes wrong.

import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { Browser, serve } from './browser.mjs';

export const ROOT = new URL('../..', import.meta.url).pathname;
const DIST = join(ROOT, 'web/dist');

/** The native program, which gives what the page is held against. */
export const NATIVE = process.env.ESMERGE ?? join(ROOT, 'target/release/esmerge');

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
    if (dtype === 'U8') found.set(name, new Uint8Array(bytes));
  }
  return found;
}

/**
 * `||a - b|| / ||b - base||` over everything two models hold, so that it is of the merged deltas; the same of the worst tensor, and the
 * largest difference of one number.
 */
function distance(a, b, base) {
  let [off, size, most, worst] = [0, 0, 0, 0];
  if (a.size !== b.size) throw new Error(`${a.size} tensors, not ${b.size}`);
  for (const [name, values] of b) {
    const [own, from] = [a.get(name), base.get(name)];
    if (own?.length !== values.length || from?.length !== values.length) throw new Error(`${name} is not there, or of another size`);
    let [tensorOff, tensorSize] = [0, 0];
    values.forEach((value, i) => {
      tensorOff += (own[i] - value) ** 2;
      tensorSize += (value - from[i]) ** 2;
      most = Math.max(most, Math.abs(own[i] - value));
    });
    [off, size] = [off + tensorOff, size + tensorSize];
    if (tensorSize > 0) worst = Math.max(worst, Math.sqrt(tensorOff / tensorSize));
  }
  return { relative: Math.sqrt(off / size), worst, most };
}

const told = ({ relative, worst, most }) => `${relative.toExponential(1)} away, the worst tensor ${worst.toExponential(1)}, a weight at most ${most.toExponential(1)}`;

let exampleBase;
const base = () => (exampleBase ??= tensors(readFileSync(join(ROOT, 'examples/vision/base/model.safetensors'))));

function nativeMerge(accuracy, ...more) {
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
      execFileSync(NATIVE, ['merge', file, join(folder, 'out'), '--device', 'cpu', '--accuracy', accuracy, '-q', ...more]);
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

export const text = (id) => `document.getElementById('${id}').innerText`;
export const click = (id) => `document.getElementById('${id}').click()`;
export const shown = (id) => `!document.getElementById('${id}').hidden`;
export const set = (id, value) => `(() => { const e = document.getElementById('${id}'); e.value = '${value}'; e.dispatchEvent(new Event('change')); })()`;

/** A page of a browser, with what it asked for; all gone afterwards. */
export async function inPage(test, { hash = '', flags } = {}) {
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

export async function loadExample(page) {
  await page.value(click('example'));
  await page.until(`${shown('chosen')} || ${shown('alert')}`, 60, 'the example is there');
}

/** Sets controls. */
export async function choose(page, controls) {
  for (const [id, value] of Object.entries(controls)) await page.value(set(id, value));
}

export async function mergedOrWhy(page, seconds) {
  await page.until(`${shown('merged')} || ${shown('alert')}`, seconds, 'it is merged');
  if (await page.value(shown('alert'))) throw new Error(await page.value(text('alert')));
}

async function mergeExample(page, { device, accuracy }) {
  await loadExample(page);
  await choose(page, { device, accuracy, dtype: 'float32' });
  await page.value(click('run'));
  await mergedOrWhy(page, 900);
  return weightsOf(page);
}

/** What the native program makes of the recipe that the page shows, with files of a folder in the place of the chosen ones. */
async function nativeOf(page, folder) {
  const recipe = (await page.value(`document.getElementById('recipe').value`)).replaceAll(`/in/${basename(folder)}`, folder);
  const beside = mkdtempSync(join(tmpdir(), 'esmerge-native-'));
  try {
    writeFileSync(join(beside, 'recipe.yaml'), recipe);
    execFileSync(NATIVE, ['merge', join(beside, 'recipe.yaml'), join(beside, 'out'), '--device', 'cpu', '-q']);
    return tensors(readFileSync(join(beside, 'out/model.safetensors')));
  } finally {
    rmSync(beside, { recursive: true, force: true });
  }
}

/** A grey image as a file of 24 bits a pixel. */
function bitmap(grey, width, height) {
  const row = Math.ceil((3 * width) / 4) * 4;
  const file = Buffer.alloc(54 + row * height);
  file.write('BM');
  [[2, file.length], [10, 54], [14, 40], [18, width], [22, height], [34, row * height]].forEach(([at, value]) => file.writeUInt32LE(value, at));
  file.writeUInt16LE(1, 26);
  file.writeUInt16LE(24, 28);
  grey.forEach((value, i) => file.fill(value, 54 + (height - 1 - Math.floor(i / width)) * row + 3 * (i % width), 54 + (height - 1 - Math.floor(i / width)) * row + 3 * (i % width) + 3));
  return file;
}

/** Gives a folder to the page. */
export async function chooseFolder(page, folder) {
  await page.files('#folders', [folder]);
  await page.until(`${shown('chosen')} || ${shown('alert')}`, 60, 'the folder is taken');
  if (await page.value(shown('alert'))) throw new Error(await page.value(text('alert')));
}

/** One tensor of the merged model. */
async function tensorOf(page, wanted) {
  const [dtype, base64] = await page.value(`(async () => {
    const blob = await esmerge.work.call('blob', '/out/merged/model.safetensors');
    const length = Number(new DataView(await blob.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
    const { dtype, data_offsets: [from, to] } = JSON.parse(await blob.slice(8, 8 + length).text())['${wanted}'];
    const bytes = new Uint8Array(await blob.slice(8 + length + from, 8 + length + to).arrayBuffer());
    let text = '';
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return [dtype, btoa(text)];
  })()`);
  if (dtype !== 'F32') throw new Error(`${wanted} is ${dtype}`);
  return new Float32Array(new Uint8Array(Buffer.from(base64, 'base64')).buffer);
}

/** The merged weights, as somebody gets them who saves the file. */
export async function weightsOf(page) {
  const base64 = await page.value(`(async () => {
    const link = [...document.querySelectorAll('#outputs a')].find((a) => a.textContent === 'model.safetensors');
    const bytes = new Uint8Array(await (await esmerge.work.call('blob', '/out/merged/model.safetensors')).arrayBuffer());
    let text = '';
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return link ? btoa(text) : '';
  })()`);
  return tensors(Buffer.from(base64, 'base64'));
}

/** Asks what the merged model knows of a task, and holds it against the native program's: no more than a sample may be answered otherwise. */
async function answersAsNative(page, task, device) {
  const path = `/in/example/tasks/${task}.safetensors`;
  const { accuracy, samples } = await page.value(`esmerge.work.json('evaluate', '/out/merged', '${path}', 'test', '${device}')`);
  const value = exact().accuracies[task];
  if (samples !== 500 || Math.abs(accuracy - value) * samples > 1.01) throw new Error(`${task}: ${accuracy} of ${samples}, natively ${value}`);
}

export async function accuraciesOf(page) {
  await page.value(click('evaluate'));
  await page.until(`document.querySelectorAll('#accuracies tbody tr').length === 4 && !document.getElementById('evaluate').disabled || ${shown('alert')}`, 600, 'all tasks are measured');
  const rows = await page.value(`[...document.querySelectorAll('#accuracies tbody tr')].map((tr) => [tr.cells[0].textContent, JSON.parse(tr.dataset.results)])`);
  return Object.fromEntries(rows);
}

/** Measures a kernel, as briefly as can be, and looks at its distance from float64. */
async function measure(page, kernel) {
  await page.until(`document.getElementById('bench-kernel').options.length > 5 || ${shown('alert')}`, 60, 'the adapter is open');
  await choose(page, { 'bench-seconds': '0.01', 'bench-kernel': kernel });
  await page.value(click('bench-all'));
  await page.until(`document.getElementById('bench-stop').hidden && ${shown('bench-copies')} && !document.getElementById('bench-all').disabled`, 300, kernel);
  const { results } = await page.value('esmerge.bench.report()');
  if (results.length === 0 || !results.every((r) => r.error < 1e-5)) throw new Error(`${kernel}: ${JSON.stringify(results)}`);
}

let native;
const exact = () => (native ??= nativeMerge('exact'));

export const tests = [
  ['the_example_merges_on_the_cpu_to_the_native_weights_moves_its_alpha_and_answers', () => inPage(async (page) => {
    const off = distance(await mergeExample(page, { device: 'cpu', accuracy: 'exact' }), exact().weights, base());
    if (!(off.relative <= 1e-5)) throw new Error(told(off));
    const outputs = await page.value(text('outputs'));
    for (const name of ['config.json', 'README.md', 'esmerge-report.json', 'model.safetensors']) {
      if (!outputs.includes(name)) throw new Error(`${name} is not among the outputs: ${outputs}`);
    }
    await answersAsNative(page, 'digits8', 'cpu');
    await page.value(`(() => { document.getElementById('alpha-again').value = 0; document.getElementById('again').requestSubmit(); })()`);
    await page.until(`/alpha 0[, ]/.test(document.getElementById('merged-note').innerText) || ${shown('alert')}`, 60, 'another alpha');
    const none = distance(await weightsOf(page), nativeMerge('exact', '--alpha', '0').weights, base());
    if (!(none.relative <= 1e-5)) throw new Error(`at alpha 0: ${told(none)}`);
    const memory = await page.value(`esmerge.work.call('memory')`);
    return `${told(off)}; ${(memory / 2 ** 20).toFixed(0)} MiB of wasm memory`;
  })],

  // as docs/numerics.md promises
  ['the_example_merges_on_webgpu_and_answers_as_the_native_one', () => inPage(async (page) => {
    const off = distance(await mergeExample(page, { device: 'gpu', accuracy: 'exact' }), exact().weights, base());
    if (!(off.relative <= 1e-5)) throw new Error(told(off));
    for (const task of Object.keys(exact().accuracies)) await answersAsNative(page, task, 'gpu');
    return told(off);
  }), { slow: true }],

  ['the_example_merges_on_webgpu_at_balanced', () => inPage(async (page) => {
    const off = distance(await mergeExample(page, { device: 'gpu', accuracy: 'balanced' }), exact().weights, base());
    if (!(off.relative <= 2e-3 && off.worst <= 2e-2)) throw new Error(told(off));
    return told(off);
  }), { slow: true }],

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

  ['a_full_storage_is_told_loses_nothing_else_and_is_no_matter_once_there_is_room', () => inPage(async (page, _, server) => {
    await loadExample(page);
    await choose(page, { method: 'task_arithmetic', device: 'cpu', dtype: 'float32' });
    await page.send('Storage.overrideQuotaForOrigin', { origin: server.address, quotaSize: 500_000 });
    await page.value(click('run'));
    await page.until(`${shown('merged')} || ${shown('alert')}`, 120, 'the storage is full');
    const said = await page.value(text('alert'));
    if (!said.includes('storage') || !said.includes('full')) throw new Error(`not told: ${said}`);
    if (await page.value(shown('merged'))) throw new Error('a merge is shown as done that is not');
    await page.send('Storage.overrideQuotaForOrigin', { origin: server.address });
    await page.value(click('run'));
    await mergedOrWhy(page, 120);
    return said;
  })],

  ['a_tab_that_is_closed_while_it_merges_is_told_of_by_the_next_and_not_while_it_lives', () => inPage(async (page, browser, server) => {
    await loadExample(page);
    await choose(page, { device: 'cpu', accuracy: 'exact' });
    await page.value(click('run'));
    await page.until(`document.getElementById('progress').value > 0`, 60, 'it has begun');
    const url = `${server.address}/index.html?fresh`;
    const other = await browser.open(url);
    await other.until(`document.getElementById('version').innerText !== ''`, 60, 'another tab');
    if (await other.value(shown('alert'))) throw new Error(`told while the tab lives: ${await other.value(text('alert'))}`);
    await page.close();
    const said = await (async () => {
      for (let i = 0; i < 50; i++) { // until the browser has let go of the tab
        await other.go(url);
        await other.until(`document.getElementById('version').innerText !== ''`, 60, 'opened anew');
        if (await other.value(shown('alert'))) return other.value(text('alert'));
      }
    })();
    if (!/merge was under way.*Nothing of it was kept/.test(said)) throw new Error(`not told: ${said}`);
    const left = await other.value(`(async () => {
      const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle('esmerge');
      const names = [];
      for await (const name of folder.keys()) names.push(name);
      return names.length;
    })()`);
    if (left > 1) throw new Error(`${left} files are in the storage; one tab lives`);
    await other.go(url);
    await other.until(`document.getElementById('version').innerText !== ''`, 60, 'opened once more');
    if (await other.value(shown('alert'))) throw new Error('told twice');
    await loadExample(other);
    await choose(other, { method: 'task_arithmetic', device: 'cpu' });
    await other.value(click('run'));
    await mergedOrWhy(other, 120);
    return said;
  })],

  ['a_device_that_is_lost_in_a_merge_is_opened_again_and_the_merge_goes_on', () => inPage(async (page) => {
    const weights = async (device) => {
      await choose(page, { method: 'task_arithmetic', device, dtype: 'float32' });
      await page.value(click('run'));
      await mergedOrWhy(page, 300);
      return weightsOf(page);
    };
    await loadExample(page);
    const right = await weights('cpu');
    await page.value(`esmerge.work.call('open_gpu').then(() => {
      const json = esmerge.work.json.bind(esmerge.work);
      esmerge.work.json = (call, ...values) => {
        const answer = json(call, ...values);
        if (call === 'merge') esmerge.work.call('lose_gpu').then((were) => (globalThis.lost = were)); // while it waits for the device
        return answer;
      };
    })`);
    const { most } = distance(await weights('gpu'), right, base());
    if (!(await page.value('globalThis.lost'))) throw new Error('no device was lost');
    if (!(most <= 1e-5)) throw new Error(`a weight is ${most} away`);
  })],

  ['a_device_that_is_lost_again_and_again_ends_a_merge_and_not_the_next', () => inPage(async (page) => {
    await loadExample(page);
    await choose(page, { method: 'task_arithmetic', device: 'gpu', dtype: 'float32' });
    await page.value(`esmerge.work.call('open_gpu').then(() => (globalThis.losing = setInterval(() => esmerge.work.call('lose_gpu'), 1)))`);
    await page.value(click('run'));
    await page.until(`${shown('merged')} || ${shown('alert')}`, 300, 'it is given up');
    const said = await page.value(text('alert'));
    if (!/lost/.test(said)) throw new Error(`not told: ${said}`);
    await page.value('clearInterval(globalThis.losing)');
    await page.value(click('run'));
    await mergedOrWhy(page, 300);
    return said.split('\n')[0].slice(0, 160);
  })],

  ['folders_of_images_calibrate_as_they_do_natively', () => inPage(async (page, browser) => {
    const folder = mkdtempSync(join(tmpdir(), 'esmerge-images-'));
    try {
      const example = join(ROOT, 'examples/vision');
      cpSync(join(example, 'base'), join(folder, 'base'), { recursive: true });
      for (const task of ['animals', 'digits8']) {
        cpSync(join(example, 'experts', task), join(folder, 'experts', task), { recursive: true });
        mkdirSync(join(folder, 'photos', task), { recursive: true });
        const pixels = tensors(readFileSync(join(example, 'tasks', `${task}.safetensors`))).get('proxy.pixels');
        for (let i = 0; i < 4; i++) writeFileSync(join(folder, 'photos', task, `${i}.bmp`), bitmap(pixels.subarray(784 * i, 784 * (i + 1)), 28, 28));
      }
      await chooseFolder(page, folder);
      await choose(page, { device: 'cpu', accuracy: 'exact', dtype: 'float32' });
      const recipe = await page.value(`document.getElementById('recipe').value`);
      for (const part of ['merge_method: esm\n', `{data: /in/${basename(folder)}/photos/animals}`, 'photos/digits8}']) {
        if (!recipe.includes(part)) throw new Error(`${part} is not in ${recipe}`);
      }
      await page.value(click('run'));
      await mergedOrWhy(page, 300);
      const off = distance(await weightsOf(page), await nativeOf(page, folder), base());
      if (!(off.relative <= 2e-5)) throw new Error(told(off)); // each is within 1e-5 of float64
      writeFileSync(join(folder, 'photos/animals/4.bmp'), 'nonsense');
      const other = await browser.open(await page.value('location.href'));
      await chooseFolder(other, folder);
      await choose(other, { device: 'cpu' });
      await other.value(click('run'));
      await other.until(`${shown('merged')} || ${shown('alert')}`, 120, 'a word on the image');
      const said = await other.value(text('alert'));
      if (!said.includes('4.bmp')) throw new Error(`the image is not named: ${said}`);
      return told(off);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  })],

  ['lines_of_text_calibrate_as_they_do_natively', () => inPage(async (page) => {
    const family = join(ROOT, '../shared/family/minilm');
    if (!existsSync(family)) return `left out: ${family} is not there`;
    const folder = mkdtempSync(join(tmpdir(), 'esmerge-texts-'));
    try {
      cpSync(join(family, 'base'), join(folder, 'base'), { recursive: true });
      const said = { sst2: ['a quiet film that stays with you', 'two hours nobody will give me back', 'clever, warm and funny'], trec: ['Who wrote it ?', 'What is a quark ?', 'Where is the source of the Nile ?'] };
      mkdirSync(join(folder, 'texts'));
      for (const [task, lines] of Object.entries(said)) {
        cpSync(join(family, `experts/${task}.delta.safetensors`), join(folder, `${task}.delta.safetensors`));
        writeFileSync(join(folder, 'texts', `${task}.txt`), lines.join('\n'));
      }
      await chooseFolder(page, folder);
      await choose(page, { device: 'cpu', dtype: 'float32' });
      await page.value(click('run'));
      await mergedOrWhy(page, 900);
      const native = await nativeOf(page, folder);
      for (const name of ['encoder.layer.0.attention.self.query.weight', 'encoder.layer.5.output.dense.weight']) {
        const [got, right] = [await tensorOf(page, name), native.get(name)];
        const most = right.reduce((most, value, i) => Math.max(most, Math.abs(value - got[i])), 0);
        if (got.length !== right.length || !(most <= 1e-4)) throw new Error(`${name} is ${most} away`);
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }), { slow: true }],

  ['it_works_without_a_network_after_the_first_visit', async () => {
    const server = await serve({ '': DIST });
    const browser = await Browser.start();
    try {
      const url = `${server.address}/index.html`;
      const page = await browser.open(url);
      await page.until('navigator.serviceWorker.controller !== null', 60, 'the page is kept');
      await loadExample(page);
      server.end();
      const gone = await fetch(url).then(() => false, () => true);
      if (!gone) throw new Error('the server answers still');
      await page.go(url);
      await loadExample(page);
      await choose(page, { method: 'task_arithmetic', device: 'cpu' });
      await page.value(click('run'));
      await mergedOrWhy(page, 120);
    } finally {
      await browser.end();
      server.end();
    }
  }],

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
    await choose(page, { device: 'cpu', accuracy: 'exact' });
    await page.value(click('run'));
    await page.until(`!document.getElementById('cancel').hidden && document.getElementById('progress').value > 0`, 60, 'it has begun');
    await page.value(click('cancel'));
    await page.until(shown('alert'), 30, 'it is stopped');
    await page.value(set('method', 'task_arithmetic'));
    await page.value(click('run'));
    await mergedOrWhy(page, 120);
  })],

  ['a_lost_device_is_a_row_of_the_bench_and_is_opened_again', () => inPage(async (page) => {
    await measure(page, 'copy_block');
    const report = await page.value('esmerge.bench.report()');
    if (report.format !== 'esmerge-bench-1') throw new Error(JSON.stringify(report));
    await page.value(`esmerge.work.call('bench_case', 0, 0.01).then(() => {}, () => {}), esmerge.work.call('lose_gpu')`);
    await page.value(click('bench-all'));
    await page.until(`document.getElementById('bench-stop').hidden && !document.getElementById('bench-all').disabled && esmerge.bench.failures().length > 0 || ${shown('alert')}`, 120, 'the loss is told');
    const said = await page.value(text('alert')) || JSON.stringify(await page.value('esmerge.bench.failures()'));
    await measure(page, 'copy_block');
    return said.slice(0, 120);
  }, { hash: '#bench' }), { slow: true }],

  ['every_row_of_the_bench_has_a_small_error', () => inPage(async (page) => {
    for (const kernel of ['pack', 'copy_block', 'layer_norm']) await measure(page, kernel);
  }, { hash: '#bench' }), { slow: true }],
];

if (!existsSync(NATIVE)) throw new Error(`${NATIVE} is not there: cargo build --release makes it, or ESMERGE names another`);
