// A .zip of blobs, which are not read into memory but for their checksums: stored, not compressed, with 64-bit sizes.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

async function checksum(blob) {
  let crc = 0xffffffff;
  for (let at = 0; at < blob.size; at += 4 << 20) {
    const bytes = new Uint8Array(await blob.slice(at, at + (4 << 20)).arrayBuffer());
    for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}

/** Little-endian fields: [bytes, value] each. */
function record(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    if (size === 4) view.setUint32(at, value, true);
    if (size === 8) view.setBigUint64(at, BigInt(value), true);
    at += size;
  }
  return view.buffer;
}

const FULL = 0xffffffff;
/** Names are UTF-8. */
const FLAGS = 0x0800;

/** `files` are [name, blob]. */
export async function zip(files) {
  const parts = [];
  const directory = [];
  let at = 0;
  const push = (list, ...pieces) => {
    list.push(...pieces);
    return pieces.reduce((sum, piece) => sum + (piece.size ?? piece.byteLength), 0);
  };
  for (const [text, blob] of files) {
    const name = new TextEncoder().encode(text);
    const crc = await checksum(blob);
    const head = [[2, 45], [2, FLAGS], [2, 0], [2, 0], [2, 0x21], [4, crc], [4, FULL], [4, FULL], [2, name.length]];
    const local = record([4, 0x04034b50], ...head, [2, 20]);
    const sizes = record([2, 1], [2, 16], [8, blob.size], [8, blob.size]);
    const place = record([2, 1], [2, 24], [8, blob.size], [8, blob.size], [8, at]);
    const central = record([4, 0x02014b50], [2, 45], ...head, [2, 28], [2, 0], [2, 0], [2, 0], [4, 0], [4, FULL]);
    push(directory, central, name, place);
    at += push(parts, local, name, sizes, blob);
  }
  const length = directory.reduce((sum, piece) => sum + piece.byteLength, 0);
  const end64 = record([4, 0x06064b50], [8, 44], [2, 45], [2, 45], [4, 0], [4, 0], [8, files.length], [8, files.length], [8, length], [8, at]);
  const locator = record([4, 0x07064b50], [4, 0], [8, at + length], [4, 1]);
  const end = record([4, 0x06054b50], [2, 0], [2, 0], [2, 0xffff], [2, 0xffff], [4, FULL], [4, FULL], [2, 0]);
  return new Blob([...parts, ...directory, end64, locator, end], { type: 'application/zip' });
}
