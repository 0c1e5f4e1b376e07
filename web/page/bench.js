// Measuring: the adapter, the peaks, every case as a row, whatever becomes of it.

import { alertOf, bytes, element, find, number, percent, row, three, time } from './dom.js';
import { within } from './work.js';

const KEPT = 'esmerge-bench';
/** Seconds without an answer after which a case is given up, and its worker with it. */
const PATIENCE = 60;
const LADDER = '512x512x512';

export function startBench(work) {
  let about;
  let peak;
  let cases = [];
  let results = [];
  let failures = [];
  let stopped = false;

  async function open() {
    if (about) return;
    find('bench-step').textContent = 'opening the adapter';
    about = await within(PATIENCE, work.json('open_gpu'), work);
    about.adapter = (await adapterName()) ?? about.adapter;
    cases = await work.json('bench_cases');
    const names = [...new Set(cases.map((c) => c.kernel))];
    find('bench-kernel').append(...names.map((name) => element('option', { value: name }, name)));
    describe();
    find('bench-step').textContent = '';
  }

  /** What the browser tells of the adapter, which is little. */
  async function adapterName() {
    const info = (await navigator.gpu?.requestAdapter())?.info;
    const words = [info?.vendor, info?.architecture, info?.device, info?.description].filter(Boolean).join(' ');
    return words ? `${words}${info.isFallbackAdapter ? ' (software)' : ''}, by WebGPU` : undefined;
  }

  function describe() {
    const list = { Adapter: about.adapter, Browser: navigator.userAgent, 'Time by': `the ${about.clock}'s clock` };
    if (peak) list.Peaks = `${three(peak.gflops)} GFLOP/s, ${three(peak.gbytes)} GB/s, measured`;
    Object.assign(list, {
      Subgroups: about.subgroups ? 'used' : 'not used', '16-bit floats': about.half_floats ? 'widened by the device' : 'widened by arithmetic',
      'At once': about.pace,
      Limits: Object.entries(about.limits).map(([name, value]) => `${name} ${name.includes('buffer') && value > 4096 || name.includes('binding') || name.includes('memory') ? bytes(value) : value}`).join(', '),
    });
    find('about').replaceChildren(...Object.entries(list).flatMap(([name, value]) => [element('dt', {}, name), element('dd', {}, value)]));
  }

  const kept = () => {
    try {
      return JSON.parse(localStorage.getItem(KEPT) ?? '[]');
    } catch {
      return [];
    }
  };

  /** Times of this case in kept reports of this adapter, oldest first, and now: as a line. */
  function before(result) {
    const same = (r) => r.kernel === result.kernel && r.size === result.size && r.dtype === result.dtype;
    const times = kept().filter((report) => report.device === about.adapter).flatMap((report) => report.results.filter(same).map((r) => r.seconds.min));
    if (times.length === 0) return '';
    const all = [...times, result.seconds.min];
    const [least, most] = [Math.min(...all), Math.max(...all)];
    const place = (t, i) => `${((60 * i) / (all.length - 1)).toFixed(1)},${(14 - (12 * (t - least)) / (most - least || 1)).toFixed(1)}`;
    const change = 100 * (result.seconds.min / times.at(-1) - 1);
    const words = `${change >= 0 ? '+' : ''}${change.toFixed(0)} %`;
    const svg = new DOMParser().parseFromString(
      `<svg xmlns="http://www.w3.org/2000/svg" width="62" height="16" viewBox="-1 0 62 16" aria-hidden="true"><polyline fill="none" stroke="currentColor" stroke-width="1.5" points="${all.map(place).join(' ')}"/></svg>`,
      'image/svg+xml').documentElement;
    return element('span', {}, svg, ` ${words}`);
  }

  function rowOf(result) {
    const { kernel, size, dtype, flops, bytes: moved, seconds, error } = result;
    const rate = (work, most) => {
      if (!work || !peak) return [number(''), number('')];
      const value = work / seconds.median / 1e9;
      return [number(three(value)), number(`${Math.round((100 * value) / most)} %`)];
    };
    return row(kernel, size, dtype, number(time(seconds.median)), ...rate(flops, peak?.gflops), ...rate(moved, peak?.gbytes),
      { text: error === undefined || error === null ? 'NaN' : error.toExponential(0), class: error > 1e-2 || error == null ? 'number bad' : 'number' }, before(result));
  }

  function failed({ kernel, size, dtype }, error) {
    failures.push({ kernel, size, dtype, error: error.message });
    const said = element('td', { colspan: 7, class: 'bad' }, error.message);
    find('bench-table').tBodies[0].append(row(kernel, size, dtype, said));
  }

  /** Does each piece of work in turn; a failure is a row, after which the adapter is opened again. */
  async function each(list, run) {
    stopped = false;
    find('bench-table').hidden = false;
    find('bench-stop').hidden = false;
    ['bench-all', 'bench-ladder'].forEach((id) => (find(id).disabled = true));
    for (const [i, one] of list.entries()) {
      if (stopped) break;
      find('bench-step').textContent = `${i + 1} of ${list.length}: ${one.kernel} ${one.size} ${one.dtype ?? ''}`;
      try {
        await run(one);
      } catch (error) {
        failed(one, error);
      }
    }
    find('bench-step').textContent = stopped ? 'stopped' : '';
    find('bench-stop').hidden = true;
    find('bench-copies').hidden = results.length === 0;
    ['bench-all', 'bench-ladder'].forEach((id) => (find(id).disabled = false));
  }

  const clear = () => {
    [results, failures] = [[], []];
    find('bench-table').tBodies[0].replaceChildren();
    find('bench-copies').hidden = true;
    alertOf();
  };
  const seconds = () => Number(find('bench-seconds').value) || 0.2;

  find('bench-all').addEventListener('click', async () => {
    try {
      await open();
      clear();
      find('bench-step').textContent = 'the peaks';
      peak = await within(PATIENCE, work.json('bench_peak', seconds()), work);
      describe();
    } catch (error) {
      find('bench-step').textContent = '';
      about = undefined;
      return alertOf(error);
    }
    const wanted = find('bench-kernel').value;
    const list = [];
    let slow = 0;
    for (const [index, one] of cases.entries()) {
      if (wanted && one.kernel !== wanted) continue;
      if (await work.call('bench_affordable', index, peak.gflops)) list.push({ ...one, index });
      else slow += 1;
    }
    await each(list, async (one) => {
      const result = await within(PATIENCE, work.json('bench_case', one.index, seconds()), work);
      results.push(result);
      find('bench-table').tBodies[0].append(rowOf(result));
    });
    if (slow && !stopped) find('bench-step').textContent = `${slow} ${slow === 1 ? 'case' : 'cases'} left out: too much for a device of ${three(peak.gflops)} GFLOP/s`;
  });

  find('bench-ladder').addEventListener('click', async () => {
    try {
      await open();
      clear();
      peak ??= await within(PATIENCE, work.json('bench_peak', seconds()), work);
      describe();
    } catch (error) {
      find('bench-step').textContent = '';
      return alertOf(error);
    }
    const tiles = (await work.call('bench_tiles')).map((tile) => ({ kernel: `gemm by ${tile}`, size: LADDER, dtype: 'float32', tile }));
    await each(tiles, async (one) => {
      const result = await within(PATIENCE, work.json('bench_tile', one.tile, LADDER, seconds()), work);
      result.kernel = one.kernel;
      results.push(result);
      find('bench-table').tBodies[0].append(rowOf(result));
    });
    const best = results.reduce((best, r) => (!best || r.seconds.min < best.seconds.min ? r : best), undefined);
    const at = results.indexOf(best);
    find('bench-table').tBodies[0].rows[at]?.classList.add('best');
    if (best) find('bench-step').textContent = `fastest here: ${best.kernel}`;
  });

  find('bench-stop').addEventListener('click', () => (stopped = true));

  const report = () => ({
    format: 'esmerge-bench-1', version: find('version').textContent.replace('esmerge ', ''), device: about.adapter, clock: about.clock, peak, results,
  });
  globalThis.esmerge.bench = { report: () => report(), failures: () => failures };

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      find('copied').textContent = 'copied';
    } catch {
      const area = element('textarea', { rows: 12, 'aria-label': 'What was to be copied' });
      area.value = text;
      find('bench-copies').after(area);
      find('copied').textContent = 'the browser does not let this page copy; here it is';
    }
  }

  find('copy-json').addEventListener('click', () => copy(JSON.stringify(report(), null, 2)));
  find('copy-markdown').addEventListener('click', () => {
    const cells = (tr) => [...tr.cells].map((cell) => cell.textContent.trim());
    const table = find('bench-table');
    const lines = [cells(table.tHead.rows[0]), [...table.tHead.rows[0].cells].map(() => '---'), ...[...table.tBodies[0].rows].map(cells)];
    copy(`${about.adapter}: ${three(peak.gflops)} GFLOP/s, ${three(peak.gbytes)} GB/s (measured)\n\n${lines.map((line) => `| ${line.join(' | ')} |`).join('\n')}\n`);
  });
  find('keep').addEventListener('click', () => {
    localStorage.setItem(KEPT, JSON.stringify([...kept(), report()].slice(-10)));
    find('copied').textContent = 'kept; the next measurements are held against it';
  });

  return { shown: () => void open().catch((error) => ((find('bench-step').textContent = ''), alertOf(error))) };
}
