// The slabs of a tiled product in workgroup memory: DEPTH columns of op(a) and rows of op(b) at a time. Each thread brings the same
// block of 4 x 4 of every slab: `fetch` reads it, `stage` puts it where all threads find it, and between the two lies the
// work on the slab before, so that nobody waits for memory.

override DOWN: u32 = 16; // threads of a workgroup down a tile, a multiple of 4
override ACROSS: u32 = 16; // and across it, a multiple of 8
override WORKGROUP: u32 = DOWN * ACROSS;

const DEPTH: u32 = 16;
const BLOCKS: u32 = DEPTH / 4; // along the depth

override FOURS_M: u32 = TILE_M / 4;
override FOURS_N: u32 = TILE_N / 4;
override BLOCKS_OF_A: u32 = FOURS_M * BLOCKS;
override BLOCKS_OF_BOTH: u32 = BLOCKS_OF_A + FOURS_N * BLOCKS;
override FIRST_OF_B: u32 = FOURS_M * DEPTH;
override SLAB: u32 = FIRST_OF_B + FOURS_N * DEPTH;

// op(a) transposed, then op(b): by depth, then by rows or columns of the result, in fours.
var<workgroup> slab: array<vec4<f32>, SLAB>;

// Where among the fours of a depth the at-th one lies: threads that stage blocks of neighbouring depths write to different
// banks. Padding would do that too, in more than the 16 KiB that every device has.
fn permuted(at: u32, depth: u32) -> u32 {
    return at ^ (2u * (depth / 4u));
}

// A thread's block of an operand: four lines of memory, either by depths or along the depth. Addresses count UNITs.
struct Block {
    at: u32, // of the first line
    line: u32, // from one line to the next
    slab: u32, // from one slab to the next
    last: u32, // of the operand: nothing beyond is read, and what is read in its place is not used
    depth: u32, // of the block's first in the slab
    to: u32, // where it is staged: its first depth
    pitch: u32, // from there to the next depth
}

// The item-th block of an operand that begins at `first`; `corner` of its `side` rows or columns is the tile's first. Neighbouring
// threads read neighbouring fours of memory, whichever way the operand lies.
fn block(item: u32, by_depth: bool, first: u32, stride: u32, corner: u32, side: u32, fours: u32) -> Block {
    let four = select(item / BLOCKS, item % fours, by_depth);
    let depth = 4u * select(item % BLOCKS, item / fours, by_depth);
    let across = corner + 4u * four;
    let line = select(across, depth, by_depth);
    let place = select(depth, across, by_depth);
    let lines = select(side, params.k, by_depth);
    let length = select(params.k, side, by_depth);
    let is_empty = lines == 0u || length == 0u;
    var it: Block;
    it.at = (first + line * stride + place) / UNIT;
    it.line = stride / UNIT;
    it.slab = DEPTH * select(1u, stride, by_depth) / UNIT;
    it.last = select((first + (lines - 1u) * stride + length - 1u) / UNIT, 0u, is_empty);
    it.depth = depth;
    it.to = depth * fours + permuted(four, depth);
    it.pitch = fours;
    return it;
}

fn is_of_b(local: u32) -> bool {
    return local >= BLOCKS_OF_A;
}

// Whether a thread has a block at all.
fn has_block(local: u32) -> bool {
    return BLOCKS_OF_BOTH >= WORKGROUP || local < BLOCKS_OF_BOTH;
}

// The block of a thread. One that has none reads the last of op(b) every time, which costs less than a branch around it.
fn own_block(local: u32, batch: u32, corner: vec2<u32>) -> Block {
    if !is_of_b(local) {
        let first = params.a_offset + batch * params.a_batch_stride;
        return block(local, TRANSPOSE_A, first, params.a_row_stride, corner.x, params.m, FOURS_M);
    }
    let first = params.b_offset + batch * params.b_batch_stride;
    let item = local - BLOCKS_OF_A;
    var it = block(item, !TRANSPOSE_B, first, params.b_row_stride, corner.y, params.n, FOURS_N);
    it.to += FIRST_OF_B;
    if !has_block(local) {
        it.at = it.last;
        it.line = 0u;
        it.slab = 0u;
    }
    return it;
}

// Four lines as they lie in memory.
struct Lines {
    x: vec4<u32>,
    y: vec4<u32>,
    z: vec4<u32>,
    w: vec4<u32>,
}

// Reads a thread's block.
fn fetch(local: u32, it: Block, lines: ptr<function, Lines>) {
    let y = it.at + it.line;
    let z = y + it.line;
    let w = z + it.line;
    if is_of_b(local) {
        *lines = Lines(line_of_b(it.at, it.last), line_of_b(y, it.last), line_of_b(z, it.last), line_of_b(w, it.last));
    } else {
        *lines = Lines(line_of_a(it.at, it.last), line_of_a(y, it.last), line_of_a(z, it.last), line_of_a(w, it.last));
    }
}

fn stage(local: u32, it: Block, k: u32, lines: Lines) {
    if !is_of_b(local) {
        stage_block(it, k, TRANSPOSE_A, FORMAT_A, lines);
    } else if has_block(local) {
        stage_block(it, k, !TRANSPOSE_B, FORMAT_B, lines);
    }
}

// Zeros stand for what lies beyond the depth.
fn stage_block(it: Block, k: u32, by_depth: bool, format: u32, lines: Lines) {
    let y = it.at + it.line;
    let z = y + it.line;
    let w = z + it.line;
    var depths = mat4x4(
        numbers(lines.x, it.at, format),
        numbers(lines.y, y, format),
        numbers(lines.z, z, format),
        numbers(lines.w, w, format),
    );
    if !by_depth {
        depths = transpose(depths);
    }
    if k + DEPTH > params.k {
        let depth = k + it.depth;
        depths[0] = select(vec4(0.0), depths[0], depth < params.k);
        depths[1] = select(vec4(0.0), depths[1], depth + 1u < params.k);
        depths[2] = select(vec4(0.0), depths[2], depth + 2u < params.k);
        depths[3] = select(vec4(0.0), depths[3], depth + 3u < params.k);
    }
    slab[it.to] = depths[0];
    slab[it.to + it.pitch] = depths[1];
    slab[it.to + 2u * it.pitch] = depths[2];
    slab[it.to + 3u * it.pitch] = depths[3];
}
