// Block Jacobi for symmetric matrices that are too large for one workgroup each: the tournament of `symmetric_eigen` with blocks
// of 16 rows and columns for players. In every round `solve` makes each pair's own 32 x 32 matrix more nearly diagonal by a
// sweep of rotations in workgroup memory, and keeps their product; `turn` applies the products to everything else. Only the
// lower triangle of the working copy is kept.

struct Params {
    n: u32,
    batch: u32,
    sweep: u32,
    round: u32,
}

const BLOCK: u32 = 16;
const SIDE: u32 = 32; // of a pair
const PITCH: u32 = 33; // of a row of SIDE elements in workgroup memory: columns lie in different banks
const WORKGROUP: u32 = 256; // BLOCK * BLOCK

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> work: array<f32>; // batch x n x n, packed, scaled
@group(0) @binding(2) var<storage, read_write> v: array<f32>; // batch x n x n, packed; the eigenvectors are its rows
@group(0) @binding(3) var<storage, read_write> turns: array<f32>; // batch x pairs x SIDE x SIDE: the products of rotations
// Three flags for each matrix, in turn: whether the sweep before rotated anything, whether this one did, and the next one's,
// which this one clears. Then a flag for each pair of each matrix: whether its matrix was turned in this round.
@group(0) @binding(4) var<storage, read_write> rotated: array<atomic<u32>>;

var<workgroup> busy: u32;
var<workgroup> any: atomic<u32>;
var<workgroup> sine: array<f32, BLOCK>;
var<workgroup> tau: array<f32, BLOCK>;
var<workgroup> tile: array<f32, SIDE * PITCH>;
var<workgroup> left: array<f32, SIDE * PITCH>;
var<workgroup> right: array<f32, SIDE * PITCH>;

//# include parts/tournament.wgsl

fn at(first: u32, i: u32, j: u32) -> u32 {
    return first + max(i, j) * params.n + min(i, j);
}

// Blocks, with a bye where they are odd.
fn players() -> u32 {
    return (params.n + SIDE - 1u) / SIDE * 2u;
}

fn flag(sweep: u32, batch: u32) -> u32 {
    return sweep % 3u * params.batch + batch;
}

// The row of the matrix that is row `i` of a pair of blocks.
fn row_of(pq: vec2<u32>, i: u32) -> u32 {
    return select(pq.x, pq.y, i >= BLOCK) * BLOCK + i % BLOCK;
}

// Chooses the rotation of the k-th pair of rows of the tile.
fn choose(k: u32, pq: vec2<u32>) {
    let pp = pq.x * PITCH + pq.x;
    let qq = pq.y * PITCH + pq.y;
    let off = tile[pq.y * PITCH + pq.x];
    sine[k] = 0.0;
    tau[k] = 0.0;
    if is_negligible(off, tile[pp], tile[qq]) {
        return;
    }
    let turn = rotation(off, tile[pp], tile[qq]);
    sine[k] = turn.sine;
    tau[k] = turn.tau;
    tile[pp] -= turn.shift;
    tile[qq] += turn.shift;
    tile[pq.y * PITCH + pq.x] = 0.0;
    tile[pq.x * PITCH + pq.y] = 0.0;
    atomicStore(&any, 1u);
}

// Rotates the 2 x 2 block of rows `i` and columns `j` of the tile from both sides, and its mirror image.
fn rotate_block(i: vec2<u32>, j: vec2<u32>, ki: u32, kj: u32) {
    let x = rotate(vec2(tile[i.x * PITCH + j.x], tile[i.y * PITCH + j.x]), sine[ki], tau[ki]);
    let y = rotate(vec2(tile[i.x * PITCH + j.y], tile[i.y * PITCH + j.y]), sine[ki], tau[ki]);
    let top = rotate(vec2(x.x, y.x), sine[kj], tau[kj]);
    let bottom = rotate(vec2(x.y, y.y), sine[kj], tau[kj]);
    tile[i.x * PITCH + j.x] = top.x;
    tile[i.x * PITCH + j.y] = top.y;
    tile[i.y * PITCH + j.x] = bottom.x;
    tile[i.y * PITCH + j.y] = bottom.y;
    tile[j.x * PITCH + i.x] = top.x;
    tile[j.y * PITCH + i.x] = top.y;
    tile[j.x * PITCH + i.y] = bottom.x;
    tile[j.y * PITCH + i.y] = bottom.y;
}

// A workgroup for each pair of blocks.
@compute @workgroup_size(WORKGROUP)
fn solve(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let pairs = players() / 2u;
    let item = matrix(group, groups);
    if item >= params.batch * pairs {
        return;
    }
    let batch = item / pairs;
    if local == 0u {
        busy = atomicLoad(&rotated[flag(params.sweep, batch)]);
        atomicStore(&rotated[flag(params.sweep + 2u, batch)], 0u);
        atomicStore(&any, 0u);
    }
    if workgroupUniformLoad(&busy) == 0u {
        return;
    }
    let n = params.n;
    let first = batch * n * n;
    let blocks = pair(item % pairs, params.round, players());
    for (var i = local; i < SIDE * SIDE; i += WORKGROUP) {
        let row = row_of(blocks, i / SIDE);
        let col = row_of(blocks, i % SIDE);
        var value = 0.0;
        if row < n && col < n {
            value = work[at(first, row, col)];
        }
        tile[i / SIDE * PITCH + i % SIDE] = value;
        left[i / SIDE * PITCH + i % SIDE] = select(0.0, 1.0, i / SIDE == i % SIDE);
    }
    let ki = local / BLOCK;
    let kj = local % BLOCK;
    for (var round = 0u; round + 1u < SIDE; round++) {
        workgroupBarrier();
        if local < BLOCK {
            choose(local, pair(local, round, SIDE));
        }
        workgroupBarrier();
        if ki > kj && (sine[ki] != 0.0 || sine[kj] != 0.0) {
            rotate_block(pair(ki, round, SIDE), pair(kj, round, SIDE), ki, kj);
        }
        for (var i = local; i < BLOCK * SIDE; i += WORKGROUP) {
            let k = i / SIDE;
            let pq = pair(k, round, SIDE) * PITCH + i % SIDE;
            let turned = rotate(vec2(left[pq.x], left[pq.y]), sine[k], tau[k]);
            left[pq.x] = turned.x;
            left[pq.y] = turned.y;
        }
    }
    workgroupBarrier();
    for (var i = local; i < SIDE * SIDE; i += WORKGROUP) {
        let row = row_of(blocks, i / SIDE);
        let col = row_of(blocks, i % SIDE);
        if row < n && col <= row {
            work[at(first, row, col)] = tile[i / SIDE * PITCH + i % SIDE];
        }
        turns[item * SIDE * SIDE + i] = left[i / SIDE * PITCH + i % SIDE];
    }
    if local == 0u {
        let turned = atomicLoad(&any);
        atomicStore(&rotated[3u * params.batch + item], turned);
        if turned != 0u {
            atomicStore(&rotated[flag(params.sweep + 1u, batch)], 1u);
        }
    }
}

// A workgroup for each tile of the matrix that two different pairs share, then for each strip of 32 columns of each pair's vectors.
@compute @workgroup_size(WORKGROUP)
fn turn(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let n = params.n;
    let pairs = players() / 2u;
    let tiles = (pairs + 1u) / 2u * (pairs - 1u);
    let strips = (n + SIDE - 1u) / SIDE;
    let items = tiles + pairs * strips;
    let item = matrix(group, groups);
    if item >= params.batch * items {
        return;
    }
    let batch = item / items;
    let index = item % items;
    let is_vectors = index >= tiles;
    var k = below_diagonal(index, pairs);
    if is_vectors {
        k = vec2((index - tiles) / strips);
    } else if k.x == k.y {
        return;
    }
    if local == 0u {
        let moved = 3u * params.batch + batch * pairs;
        busy = atomicLoad(&rotated[moved + k.x]) | atomicLoad(&rotated[moved + k.y]);
        busy *= atomicLoad(&rotated[flag(params.sweep, batch)]);
    }
    if workgroupUniformLoad(&busy) == 0u {
        return;
    }
    let first = batch * n * n;
    let rows = pair(k.x, params.round, players());
    let cols = pair(k.y, params.round, players());
    let strip = (index - tiles) % strips * SIDE;
    for (var i = local; i < SIDE * SIDE; i += WORKGROUP) {
        let r = i / SIDE;
        let c = i % SIDE;
        let row = row_of(rows, r);
        let col = select(row_of(cols, c), strip + c, is_vectors);
        var value = 0.0;
        if row < n && col < n {
            if is_vectors {
                value = v[first + row * n + col];
            } else {
                value = work[at(first, row, col)];
            }
        }
        tile[r * PITCH + c] = value;
        left[r * PITCH + c] = turns[(batch * pairs + k.x) * SIDE * SIDE + i];
        right[r * PITCH + c] = turns[(batch * pairs + k.y) * SIDE * SIDE + i];
    }
    workgroupBarrier();

    // left tile, rows r and r + 16, columns c and c + 16 a thread
    let r = local / BLOCK;
    let c = local % BLOCK;
    var top = vec2(0.0);
    var bottom = vec2(0.0);
    for (var i = 0u; i < SIDE; i++) {
        let x = vec2(tile[i * PITCH + c], tile[i * PITCH + c + BLOCK]);
        top += left[r * PITCH + i] * x;
        bottom += left[(r + BLOCK) * PITCH + i] * x;
    }
    workgroupBarrier();
    if !is_vectors {
        // and times right^T
        tile[r * PITCH + c] = top.x;
        tile[r * PITCH + c + BLOCK] = top.y;
        tile[(r + BLOCK) * PITCH + c] = bottom.x;
        tile[(r + BLOCK) * PITCH + c + BLOCK] = bottom.y;
        workgroupBarrier();
        top = vec2(0.0);
        bottom = vec2(0.0);
        for (var i = 0u; i < SIDE; i++) {
            let y = vec2(right[c * PITCH + i], right[(c + BLOCK) * PITCH + i]);
            top += tile[r * PITCH + i] * y;
            bottom += tile[(r + BLOCK) * PITCH + i] * y;
        }
    }
    let result = array<f32, 4>(top.x, top.y, bottom.x, bottom.y);
    for (var i = 0u; i < 4u; i++) {
        let row = row_of(rows, r + i / 2u * BLOCK);
        let at_col = c + i % 2u * BLOCK;
        let col = select(row_of(cols, at_col), strip + at_col, is_vectors);
        if row < n && col < n {
            if is_vectors {
                v[first + row * n + col] = result[i];
            } else {
                work[at(first, row, col)] = result[i];
            }
        }
    }
}
