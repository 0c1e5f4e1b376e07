// Merging: what was chosen, the plan, the merge, what came of it.

import { lost, note } from './closed.js';
import { alertOf, bytes, element, find, number, percent, row, time } from './dom.js';
import { zip } from './zip.js';

/** Where chosen files and outputs lie on the worker's disk. */
const IN = '/in';
const OUT = '/out/merged';
const DELTA = '/out/deltas.safetensors';

export function startMerge(work) {
  const files = new Map();
  let found = { models: [], calibrations: [], tasks: [], samples: [], errors: [] };
  let methods = [];
  let edited = false;
  let merged;

  work.renewed = async (send) => {
    await Promise.all([...files].map(([path, file]) => send('mount', path, file)));
    merged = undefined;
  };

  // ---- what was chosen ----

  /** Images that were chosen one by one are samples together. */
  const place = (path, file) => (!path.includes('/') && file.type?.startsWith('image/') ? `${IN}/images/${path}` : `${IN}/${path}`);

  async function add(entries) {
    alertOf();
    for (const [path, file] of entries) {
      files.set(place(path, file), file);
      await work.call('mount', place(path, file), file);
    }
    await survey();
  }

  async function survey() {
    found = await work.json('survey', IN);
    if (methods.length === 0) {
      methods = await work.json('all_methods');
      find('method').replaceChildren(...methods.map((m) => element('option', { value: m.name, title: m.line }, m.name)));
    }
    const whole = found.models.filter((m) => m.kind === 'model');
    const base = whole.find((m) => /base|pretrained/i.test(m.name)) ?? whole[0];
    find('models').tBodies[0].replaceChildren(...found.models.map((model) => modelRow(model, model === base)));
    const calibrated = found.models.some((m) => m !== base && inputsOf(m));
    find('method').value = calibrated ? 'esm' : 'task_arithmetic';
    find('alpha').value = calibrated ? 0.5 : 0.3;
    find('chosen').hidden = found.models.length === 0;
    find('evaluated').hidden = found.tasks.length === 0;
    edited = false;
    writeRecipe();
    if (found.errors.length) alertOf(found.errors.join('\n'));
    else if (found.models.length === 0) alertOf('there is no model among these files: choose folders with a config.json and .safetensors files, or .safetensors files');
  }

  /** What tells the inputs of an expert's layers, as the recipe says it: files of them, and samples that it is run on. */
  function inputsThereAre() {
    const samples = [...found.samples, ...found.tasks].map((s) => ({ ...s, recipe: `{data: ${text(s.path)}}`, how: 'captured from ' }));
    return [...found.calibrations.map((c) => ({ ...c, recipe: text(c.path), how: '' })), ...samples];
  }

  const inputsOf = (model) => inputsThereAre().find((inputs) => inputs.name === model.name)?.recipe;

  function modelRow(model, isBase) {
    const name = model.path.replace(`${IN}/`, '');
    const is = element('select', { 'aria-label': `What ${name} is`, 'data-model': model.path, on: { change: writeRecipe } },
      ...['expert', 'base', 'left out'].map((text) => element('option', { selected: text === (isBase ? 'base' : 'expert') }, text)));
    const chosen = inputsOf(model) ?? 'none';
    const inputs = element('select', { 'aria-label': `Inputs of the layers of ${name}`, 'data-inputs': model.path, on: { change: writeRecipe } },
      element('option', { value: 'none' }, 'not known'),
      ...inputsThereAre().map(({ recipe, how, path }) => element('option', { value: recipe, selected: recipe === chosen }, how + path.replace(`${IN}/`, ''))));
    return row(name, number(bytes(model.bytes)), is, inputs);
  }

  const text = (path) => (/^[\w/.-]+$/.test(path) ? path : JSON.stringify(path));

  function writeRecipe() {
    if (edited) return;
    const method = methods.find((m) => m.name === find('method').value);
    const all = [...document.querySelectorAll('[data-model]')].map((select) => ({ path: select.dataset.model, is: select.value }));
    const base = all.find((m) => m.is === 'base');
    const lines = [`merge_method: ${method.name}`];
    if (base) lines.push(`base_model: ${text(base.path)}`);
    lines.push('models:');
    for (const { path } of all.filter((m) => m.is === 'expert')) {
      const isDelta = found.models.some((m) => m.path === path && m.kind === 'delta');
      lines.push(`  - model: ${isDelta ? `{delta: ${text(path)}}` : text(path)}`);
      const inputs = document.querySelector(`[data-inputs="${CSS.escape(path)}"]`).value;
      if (method.calibration) lines.push(`    calibration: ${inputs}`);
    }
    lines.push('parameters:', `  ${method.strength}: ${find('alpha').value || 1}`, `accuracy: ${find('accuracy').value}`, `out_dtype: ${find('dtype').value}`);
    const more = method.example.split('\n').filter((line) => line && !/^(alpha|lambda)\b/.test(line));
    more.forEach((line) => lines.splice(lines.length - 2, 0, `  ${line}`));
    find('recipe').value = lines.join('\n') + '\n';
  }

  // ---- folders and files ----

  async function walk(entry, into) {
    if (entry.isFile) return into.push([entry.fullPath.slice(1), await new Promise((done, fail) => entry.file(done, fail))]);
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((done, fail) => reader.readEntries(done, fail));
      if (some.length === 0) return;
      for (const inner of some) await walk(inner, into);
    }
  }

  const fromInput = (event) => add([...event.target.files].map((file) => [file.webkitRelativePath || file.name, file])).catch(alertOf);
  find('folders').addEventListener('change', fromInput);
  find('files').addEventListener('change', fromInput);
  addEventListener('dragover', (event) => (event.preventDefault(), document.body.classList.add('over')));
  addEventListener('dragleave', () => document.body.classList.remove('over'));
  addEventListener('drop', async (event) => {
    event.preventDefault();
    document.body.classList.remove('over');
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    const into = [];
    try {
      for (const entry of entries) await walk(entry, into);
      await add(into);
    } catch (error) {
      alertOf(error);
    }
  });

  find('example').addEventListener('click', async () => {
    find('example').disabled = true;
    try {
      const list = await (await fetch('example.json')).json();
      const all = list.filter((path) => !path.endsWith('.yaml'));
      await add(await Promise.all(all.map(async (path) => [path, await (await fetch(path)).blob()])));
    } catch (error) {
      alertOf(error);
    }
    find('example').disabled = false;
  });

  ['method', 'alpha', 'accuracy', 'dtype'].forEach((id) => find(id).addEventListener('change', writeRecipe));
  find('recipe').addEventListener('input', () => (edited = true));

  // ---- the plan and the merge ----

  async function plan() {
    alertOf();
    await work.call('write_file', `${IN}/recipe.yaml`, find('recipe').value);
    const { plan, notes, beside } = await work.json('plan_of', `${IN}/recipe.yaml`);
    const groups = new Map();
    for (const layer of [...plan.layers, ...(plan.experts?.layers ?? [])]) {
      const kind = layer.shape ? layer.name.replace(/\d+/g, '*') : (layer.reason ?? 'all tensors');
      const group = groups.get(`${kind} ${layer.role}`) ?? { kind, role: layer.role, tensors: 0, values: 0, flops: 0, shape: '' };
      group.tensors += layer.parts.length;
      group.values += layer.parts.reduce((sum, part) => sum + (part.elements ?? (part.shape ?? []).reduce((a, b) => a * b, 1)), 0);
      group.flops += layer.cost.flops;
      if (layer.shape) group.shape = `${layer.shape.join(' × ')}, rank ${layer.rank}`;
      groups.set(`${kind} ${layer.role}`, group);
    }
    find('plan-table').tBodies[0].replaceChildren(...[...groups.values()].map((g) =>
      row(g.kind, g.role, number(g.tensors), number(g.values.toLocaleString('en')), g.shape, number((g.flops / 1e9).toFixed(2)))));
    find('plan-account').textContent = `${plan.models.length} experts of ${plan.base_model} by ${plan.merge_method}.`;
    find('planned').hidden = false;
    warn([...notes, ...beside, ...plan.warnings]);
    return plan;
  }

  function warn(list) {
    const known = new Set([...find('warnings').children].map((li) => li.textContent));
    if (list.length === 0) return;
    find('warnings').append(...list.filter((text) => !known.has(text)).map((text) => element('li', {}, text)));
    find('warnings').hidden = find('warnings').children.length === 0;
  }

  /** Shows how the work in hand goes on, until it ends. */
  async function going(run) {
    const started = performance.now();
    let [total, done] = [0, 0];
    const buttons = ['run', 'plan', 'example'].map(find);
    work.listener = ({ event, text, number }) => {
      if (event === 'start') total = number;
      if (event === 'advance') done += number;
      if (event === 'warn') warn([text]);
      const share = event === 'probe' ? number : total > 0 ? Math.min(done / total, 1) : 0;
      find('progress').value = share;
      const left = share > 0.02 ? `, ${time(((performance.now() - started) / 1000) * (1 - share) / share)} left` : '';
      note(`A merge was under way when its tab was closed, ${percent(share)} of it done. Nothing of it was kept: choose the files again.`);
      if (text && event !== 'warn') find('step').textContent = `${percent(share)}${left}: ${text}`;
    };
    buttons.forEach((button) => (button.disabled = true));
    find('going').hidden = find('cancel').hidden = false;
    try {
      return await run();
    } finally {
      buttons.forEach((button) => (button.disabled = false));
      find('going').hidden = find('cancel').hidden = true;
      work.listener = () => {};
      note();
    }
  }

  find('cancel').addEventListener('click', () => work.stop(new Error('stopped; nothing of the merge was kept')));
  find('plan').addEventListener('click', () => plan().catch(alertOf));

  find('run').addEventListener('click', async () => {
    find('warnings').replaceChildren();
    find('merged').hidden = true;
    try {
      const planned = await plan();
      const device = find('device').value;
      const keeps = !planned.experts && !/^(slices|tokenizer|tokenizer_source|out):/m.test(find('recipe').value);
      const report = await going(async () => {
        await work.call('remove', DELTA);
        return work.json('merge', `${IN}/recipe.yaml`, OUT, keeps ? DELTA : undefined, device);
      });
      const base = /^base_model: *"?([^"#\n]+)"?/m.exec(find('recipe').value)?.[1].trim();
      merged = { report, device, base, keeps };
      await showMerged();
    } catch (error) {
      alertOf(error);
    }
  });

  find('alpha-again').addEventListener('input', ({ target }) => (find('alpha-shown').textContent = Number(target.value).toFixed(2)));
  find('again').addEventListener('submit', async (event) => {
    event.preventDefault();
    try {
      const alpha = Number(find('alpha-again').value);
      const report = await going(() => work.json('rescale', DELTA, merged.base, alpha, OUT, merged.device));
      merged = { ...merged, report: { ...merged.report, alpha, seconds: report.seconds } };
      await showMerged();
    } catch (error) {
      alertOf(error);
    }
  });

  // ---- what came of it ----

  const name = (path) => path.slice(OUT.length + 1);

  async function showMerged() {
    const { report } = merged;
    const outputs = await work.json('list', OUT);
    const blobs = await Promise.all(outputs.map(async ({ path }) => [name(path), await work.call('blob', path)]));
    merged.blobs = blobs;
    find('outputs').querySelectorAll('a').forEach((link) => URL.revokeObjectURL(link.href));
    find('outputs').replaceChildren(...blobs.map(([name, blob]) =>
      element('li', {}, element('a', { href: URL.createObjectURL(blob), download: name.replaceAll('/', '-') }, name), ` ${bytes(blob.size)}`)));
    find('save').href = '#';
    const alpha = report.alpha === undefined ? '' : ` at alpha ${report.alpha}`;
    find('merged-note').textContent = `${report.models.length} experts by ${report.merge_method}${alpha}, in ${time(report.seconds ?? 0)} on ${report.device}.`;
    find('again').hidden = !(merged.keeps && merged.base);
    if (report.alpha !== undefined) {
      find('alpha-again').value = report.alpha;
      find('alpha-shown').textContent = Number(report.alpha).toFixed(2);
    }
    await showFigures(report);
    find('save-folder').hidden = !('showDirectoryPicker' in globalThis);
    find('merged').hidden = false;
    find('merged-title').focus();
    note('The tab with a merged model was closed before the model was saved. It is gone: choose the files again.');
  }

  /** The report's pictures, which bring their own colours and so are shown as images. */
  async function showFigures(report) {
    const pictures = await work.call('figures_of', JSON.stringify(report));
    find('figure').querySelectorAll('img').forEach((img) => URL.revokeObjectURL(img.src));
    find('figure').replaceChildren(...pictures.map((svg) => {
      const title = new DOMParser().parseFromString(svg, 'image/svg+xml').querySelector('title').textContent;
      const img = element('img', { src: URL.createObjectURL(new Blob([svg], { type: 'image/svg+xml' })), alt: `Chart: ${title}` });
      return element('div', { class: 'wide', tabindex: 0, role: 'region', 'aria-label': title }, img);
    }));
  }

  find('save').addEventListener('click', async (event) => {
    if (find('save').href.startsWith('blob:')) return;
    event.preventDefault();
    const archive = await zip(merged.blobs.map(([name, blob]) => [`merged/${name}`, blob]));
    find('save').href = URL.createObjectURL(archive);
    find('save').download = 'merged.zip';
    find('save').click();
    note();
  });

  find('save-folder').addEventListener('click', async () => {
    try {
      const folder = await showDirectoryPicker({ mode: 'readwrite' });
      for (const [name, blob] of merged.blobs) {
        const parts = name.split('/');
        let into = folder;
        for (const part of parts.slice(0, -1)) into = await into.getDirectoryHandle(part, { create: true });
        const file = await into.getFileHandle(parts.at(-1), { create: true });
        await blob.stream().pipeTo(await file.createWritable());
      }
      note();
    } catch (error) {
      if (error.name !== 'AbortError') alertOf(error);
    }
  });

  // ---- what it can do ----

  find('evaluate').addEventListener('click', async () => {
    const table = find('accuracies');
    const device = find('device').value;
    const base = [...document.querySelectorAll('[data-model]')].find((select) => select.value === 'base')?.dataset.model;
    table.hidden = false;
    table.tBodies[0].replaceChildren();
    find('strips').replaceChildren();
    find('evaluate').disabled = true;
    try {
      for (const task of found.tasks) {
        const expert = found.models.find((model) => model.name === task.name);
        const models = { base, expert: expert?.kind === 'delta' ? `${base}+delta:${expert.path}` : expert?.path, merged: merged && OUT };
        const results = {};
        for (const [who, model] of Object.entries(models)) {
          if (!model) continue;
          find('evaluating').textContent = `${task.name}: ${who}`;
          results[who] = await work.json('evaluate', model, task.path, 'test', device);
        }
        const cell = (result) => (result ? number(`${percent(result.accuracy)} (${percent(result.interval[0])} to ${percent(result.interval[1])})`) : number('not there'));
        const shown = row(task.name, cell(results.base), cell(results.expert), cell(results.merged));
        shown.dataset.results = JSON.stringify(Object.fromEntries(Object.entries(results).map(([who, r]) => [who, [r.accuracy, r.samples]])));
        table.tBodies[0].append(shown);
        await strip(task, results).catch(() => {}); // texts have no pictures
      }
      find('evaluating').textContent = '';
    } catch (error) {
      find('evaluating').textContent = '';
      alertOf(error);
    }
    find('evaluate').disabled = false;
  });

  /** Some of the test's images, evenly chosen, with everybody's answers. */
  async function strip(task, results) {
    const { shape, classes } = await work.json('images_of', task.path, 'test');
    const [count, height, width] = shape;
    if (shape.length !== 3) return;
    const SHOWN = 10;
    const list = element('ul', { class: 'strip' });
    for (let i = 0; i < SHOWN; i++) {
      const at = Math.floor((i * count) / SHOWN);
      const grey = await work.call('pixels', task.path, 'test', at);
      const canvas = element('canvas', { width, height, role: 'img', 'aria-label': `${task.name}, test image ${at}` });
      const image = new ImageData(width, height);
      grey.forEach((value, k) => image.data.set([value, value, value, 255], 4 * k));
      canvas.getContext('2d').putImageData(image, 0, 0);
      const answers = Object.entries(results).map(([who, result]) => {
        const answer = result.answers[at];
        const mark = result.right[at] ? '✓' : '✗';
        return element('div', { class: result.right[at] ? 'right' : 'wrong' }, `${mark} ${who}: ${classes?.[answer] ?? answer}`);
      });
      list.append(element('li', {}, canvas, ...answers));
    }
    find('strips').append(element('h4', {}, task.name), list);
  }

  lost().then((texts) => texts.length && alertOf([...new Set(texts)].join('\n')), () => {});

  return {};
}
