// A model that no memory of a page would hold: a base of more than 1 GiB and an adapter.

import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { choose, chooseFolder, click, inPage, mergedOrWhy, text } from './page.mjs';

const [LAYERS, HIDDEN, INNER, KEYS, WORDS] = [10, 2048, 5632, 256, 32000];
const [RANK, SCALE, ALPHA] = [8, 2, 0.3];

/** Upper half of a float32's bits: what is written is exactly that. */
const bfloat16 = (value) => new Uint32Array(Float32Array.of(value).buffer)[0] >>> 16;
const value = (bits) => new Float32Array(Uint32Array.of(bits << 16).buffer)[0];

/** Small numbers without a pattern, as many as no size of a tensor is a multiple of; each tensor begins somewhere else among them. */
const NUMBERS = Uint16Array.from({ length: 65521 }, (_, i) => bfloat16((((Math.imul(i + 1, 2654435761) >>> 8) & 0xffff) / 65536 - 0.5) / 16));
const element = (seed, i) => NUMBERS[(seed + i) % NUMBERS.length];

/** Writes bfloat16 tensors by name and shape, piece by piece. */
function write(path, tensors) {
  let end = 0;
  const header = {};
  for (const [name, shape] of tensors) {
    const start = end;
    end += 2 * shape.reduce((a, b) => a * b);
    header[name] = { dtype: 'BF16', shape, data_offsets: [start, end] };
  }
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const file = openSync(path, 'w');
  writeSync(file, length);
  writeSync(file, json);
  for (const [name, shape] of tensors) {
    const count = shape.reduce((a, b) => a * b);
    for (let at = 0; at < count; ) {
      const first = (seedOf(name) + at) % NUMBERS.length;
      const piece = NUMBERS.subarray(first, Math.min(NUMBERS.length, first + count - at));
      writeSync(file, piece);
      at += piece.length;
    }
  }
  closeSync(file);
  return 8 + json.length + end;
}

const seedOf = (name) => [...name].reduce((hash, letter) => Math.imul(hash ^ letter.charCodeAt(0), 16777619), 2166136261) >>> 0;

const layer = (i) => `model.layers.${i}.`;

function base(folder) {
  const config = {
    architectures: ['LlamaForCausalLM'], model_type: 'llama', hidden_size: HIDDEN, intermediate_size: INNER, num_hidden_layers: LAYERS,
    num_attention_heads: 32, num_key_value_heads: 4, vocab_size: WORDS, rms_norm_eps: 1e-5, tie_word_embeddings: false, torch_dtype: 'bfloat16',
  };
  const tensors = [['model.embed_tokens.weight', [WORDS, HIDDEN]], ['lm_head.weight', [WORDS, HIDDEN]], ['model.norm.weight', [HIDDEN]]];
  for (let i = 0; i < LAYERS; i++) {
    const of = (name, ...shape) => tensors.push([`${layer(i)}${name}.weight`, shape]);
    of('self_attn.q_proj', HIDDEN, HIDDEN);
    of('self_attn.k_proj', KEYS, HIDDEN);
    of('self_attn.v_proj', KEYS, HIDDEN);
    of('self_attn.o_proj', HIDDEN, HIDDEN);
    ['gate_proj', 'up_proj'].forEach((name) => of(`mlp.${name}`, INNER, HIDDEN));
    of('mlp.down_proj', HIDDEN, INNER);
    ['input_layernorm', 'post_attention_layernorm'].forEach((name) => of(name, HIDDEN));
  }
  mkdirSync(folder);
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
  return write(join(folder, 'model.safetensors'), tensors);
}

const adapted = (i, which, side) => `base_model.model.${layer(i)}self_attn.${which}_proj.lora_${side}.weight`;

function adapter(folder) {
  const config = {
    peft_type: 'LORA', r: RANK, lora_alpha: RANK * SCALE, target_modules: ['q_proj', 'v_proj'], bias: 'none', task_type: 'CAUSAL_LM', base_model_name_or_path: 'base',
  };
  const tensors = [];
  for (let i = 0; i < LAYERS; i++) {
    for (const [which, rows] of [['q', HIDDEN], ['v', KEYS]]) {
      tensors.push([adapted(i, which, 'A'), [RANK, HIDDEN]], [adapted(i, which, 'B'), [rows, RANK]]);
    }
  }
  mkdirSync(folder);
  writeFileSync(join(folder, 'adapter_config.json'), JSON.stringify(config));
  write(join(folder, 'adapter_model.safetensors'), tensors);
}

/** Some elements of the merged model, by what was written into the files: bfloat16 of `W + alpha scale B A`. */
function expected(name, row, cols) {
  const [, i, which] = /layers\.(\d+)\.self_attn\.([qv])_proj/.exec(name) ?? [];
  return Array.from({ length: cols }, (_, col) => {
    const was = value(element(seedOf(name), row * cols + col));
    if (which === undefined) return was;
    const [a, b] = ['A', 'B'].map((side) => seedOf(adapted(i, which, side)));
    let sum = 0;
    for (let k = 0; k < RANK; k++) sum += value(element(b, row * RANK + k)) * value(element(a, k * cols + col));
    return was + ALPHA * SCALE * sum;
  });
}

export const tests = [
  ['a_big_base_and_an_adapter_merge_in_little_memory', () => inPage(async (page) => {
    const folder = mkdtempSync(join(tmpdir(), 'esmerge-big-'));
    try {
      const bytes = base(join(folder, 'base'));
      if (bytes < 2 ** 30) throw new Error(`the base has ${bytes} bytes`);
      adapter(join(folder, 'adapter'));
      await chooseFolder(page, folder);
      await choose(page, { device: 'cpu', method: 'task_arithmetic', alpha: ALPHA });
      const started = Date.now();
      await page.value(click('run'));
      await mergedOrWhy(page, 1800);
      const seconds = (Date.now() - started) / 1000;
      const memory = (await page.value(`esmerge.work.call('memory')`)) / 2 ** 20;
      for (const [name, row, cols] of [
        [`${layer(3)}self_attn.q_proj.weight`, 1234, HIDDEN], [`${layer(9)}self_attn.v_proj.weight`, 17, HIDDEN],
        [`${layer(0)}mlp.down_proj.weight`, 77, INNER], ['lm_head.weight', 31999, HIDDEN],
      ]) {
        const got = await page.value(`(${rowOf})(${JSON.stringify(name)}, ${row}, ${cols})`);
        const right = expected(name, row, cols);
        const off = Math.max(...got.map((bits, i) => Math.abs(value(bits) - right[i]) / Math.max(Math.abs(right[i]), 1e-3)));
        if (!(got.length === cols && off <= 2 ** -8)) throw new Error(`${name}, row ${row}: ${off} away`);
      }
      if (!(memory < 300)) throw new Error(`${memory.toFixed(0)} MiB of wasm memory; the page said ${await page.value(text('merged-note'))}`);
      return `${(bytes / 2 ** 30).toFixed(2)} GiB in ${seconds.toFixed(0)} s, ${memory.toFixed(0)} MiB of wasm memory`;
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }), { slow: true }],
];

/** In the page: the bits of a row of a merged tensor, read where they lie. */
const rowOf = async (name, row, cols) => {
  const all = JSON.parse(await esmerge.work.call('list', '/out/merged')).map((entry) => entry.path).filter((path) => path.endsWith('.safetensors'));
  for (const path of all) {
    const blob = await esmerge.work.call('blob', path);
    const length = Number(new DataView(await blob.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
    const found = JSON.parse(await blob.slice(8, 8 + length).text())[name];
    if (!found) continue;
    const from = 8 + length + found.data_offsets[0] + 2 * row * cols;
    return [...new Uint16Array(await blob.slice(from, from + 2 * cols).arrayBuffer())];
  }
  throw new Error(`${name} is in no output`);
};
