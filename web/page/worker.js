// Where the work is done, so that the page never waits: one call after the other, each answered with a value or an error.

import init, * as esmerge from './esmerge_web.js';

let panic;
const report = console.error;
console.error = (...words) => {
  panic ??= words.join(' ').split('\n\nStack')[0];
  report(...words);
};
// a defect ends the module: whoever asked is told, and starts another worker
const fail = (event) => postMessage({ dead: panic ?? event.message ?? String(event.reason) });
addEventListener('error', fail);
addEventListener('unhandledrejection', fail);

/** A chosen file, read piece by piece where it lies. */
class Chosen {
  #reader = new FileReaderSync();

  constructor(blob) {
    this.blob = blob;
    this.length = blob.size;
  }

  read(bytes, offset) {
    const PIECE = 8 << 20;
    for (let at = 0; at < bytes.length; at += PIECE) {
      const end = Math.min(at + PIECE, bytes.length);
      bytes.set(new Uint8Array(this.#reader.readAsArrayBuffer(this.blob.slice(offset + at, offset + end))), at);
    }
  }
}

/** One file of the browser's own storage, in which outputs lie in pieces. */
class Storage {
  constructor(handle) {
    this.handle = handle;
  }

  read(bytes, at) {
    if (this.handle.read(bytes, { at }) !== bytes.length) throw new Error('the storage of this page lost what was written');
  }

  write(bytes, at) {
    const written = this.handle.write(bytes, { at });
    if (written !== bytes.length) throw new DOMException(`${written} of ${bytes.length} bytes were taken`, 'QuotaExceededError');
  }
}

const FOLDER = 'esmerge';
let storage;
let storageFile;

/** Takes what earlier pages left, and opens a file for this one; without such storage outputs stay in memory. */
async function openStorage() {
  try {
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle(FOLDER, { create: true });
    for await (const name of folder.keys()) {
      await folder.removeEntry(name).catch(() => {}); // another tab's, in use
    }
    storageFile = await folder.getFileHandle(`scratch-${crypto.randomUUID()}`, { create: true });
    storage = await storageFile.createSyncAccessHandle();
    esmerge.set_storage(new Storage(storage));
    return true;
  } catch {
    return false;
  }
}

const calls = {
  mount: (path, blob) => esmerge.mount(path, new Chosen(blob)),

  /** The bytes of an output as a blob that is read where it lies. */
  async blob(path) {
    const pieces = esmerge.contents(path);
    if (pieces instanceof Uint8Array) return new Blob([pieces]);
    storage.flush();
    const file = await storageFile.getFile();
    return new Blob(pieces.map(([offset, length]) => file.slice(offset, offset + length)));
  },

  merge: (recipe, out, delta, device) => esmerge.merge(recipe, out, delta, device, listener),
  rescale: (delta, base, alpha, out, device) => esmerge.rescale(delta, base, alpha, out, device, listener),
  memory: () => wasm.memory.buffer.byteLength,
};

const listener = { tell: (event, text, number) => postMessage({ event, text, number }) };

let wasm;
const ready = init().then(async (exports) => {
  wasm = exports;
  return openStorage();
});

onmessage = async ({ data: { id, call, with: values } }) => {
  try {
    await ready;
    const value = await (calls[call] ?? esmerge[call])(...values);
    postMessage({ id, value });
  } catch (error) {
    postMessage({ id, error: panic ?? error.message ?? String(error) });
    if (!panic) esmerge.close_gpu(); // it may be lost: whoever is next opens it anew
  }
};
