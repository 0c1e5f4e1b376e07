// Block Jacobi for symmetric matrices that are too large for one workgroup each: the tournament of `symmetric_eigen` with blocks
// of 16 rows and columns for players. In every round `solve` makes each pair's own 32 x 32 matrix more nearly diagonal by
// rotations in workgroup memory, and keeps their product; `turn` applies the products to everything else. Only the lower
// triangle of the working copy is kept. A sweep rotates every pair of rows once: those within a block in its first round.

//# include parts/outer.wgsl
//# include parts/square.wgsl

struct Params {
    n: u32,
    batch: u32,
    sweep: u32,
    round: u32,
}

const BLOCK: u32 = 16;
const PITCH: u32 = 33; // of a row of SIDE elements in workgroup memory: columns lie in different banks
const WORKGROUP: u32 = 256; // of `solve`: BLOCK * BLOCK

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> work: array<f32>; // batch x n x n, packed, scaled
@group(0) @binding(2) var<storage, read_write> v: array<f32>; // batch x n x n, packed; the eigenvectors are its rows
@group(0) @binding(3) var<storage, read_write> turns: array<vec4<f32>>; // batch x pairs x SIDE x SIDE: the products of rotations, transposed
// Three flags for each matrix, in turn: whether the sweep before rotated anything, whether this one did, and the next one's,
// which this one clears. Then a flag for each pair of each matrix: whether its matrix was turned in this round.
@group(0) @binding(4) var<storage, read_write> rotated: array<atomic<u32>>;

var<workgroup> busy: u32;
var<workgroup> any: atomic<u32>;
var<workgroup> sine: array<f32, BLOCK>;
var<workgroup> tau: array<f32, BLOCK>;
var<workgroup> tile: array<f32, SIDE * PITCH>;
var<workgroup> turned: array<f32, SIDE * PITCH>;

//# include parts/tournament.wgsl

fn address(first: u32, i: u32, j: u32) -> u32 {
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

// The k-th pair of rows of the tile in a round of rotations: across the two blocks, or in the first round of a sweep any two.
fn rotated_pair(k: u32, round: u32) -> vec2<u32> {
    if params.round == 0u {
        return pair(k, round, SIDE);
    }
    return vec2(k, BLOCK + (k + round) % BLOCK);
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
            value = work[address(first, row, col)];
        }
        tile[i / SIDE * PITCH + i % SIDE] = value;
        turned[i / SIDE * PITCH + i % SIDE] = select(0.0, 1.0, i / SIDE == i % SIDE);
    }
    let ki = local / BLOCK;
    let kj = local % BLOCK;
    let rounds = select(BLOCK, SIDE - 1u, params.round == 0u);
    for (var round = 0u; round < rounds; round++) {
        workgroupBarrier();
        if local < BLOCK {
            choose(local, rotated_pair(local, round));
        }
        workgroupBarrier();
        if ki > kj && (sine[ki] != 0.0 || sine[kj] != 0.0) {
            rotate_block(rotated_pair(ki, round), rotated_pair(kj, round), ki, kj);
        }
        for (var i = local; i < BLOCK * SIDE; i += WORKGROUP) {
            let k = i / SIDE;
            let pq = rotated_pair(k, round) * PITCH + i % SIDE;
            let xy = rotate(vec2(turned[pq.x], turned[pq.y]), sine[k], tau[k]);
            turned[pq.x] = xy.x;
            turned[pq.y] = xy.y;
        }
    }
    workgroupBarrier();
    for (var i = local; i < SIDE * SIDE; i += WORKGROUP) {
        let row = row_of(blocks, i / SIDE);
        let col = row_of(blocks, i % SIDE);
        if row < n && col <= row {
            work[address(first, row, col)] = tile[i / SIDE * PITCH + i % SIDE];
        }
    }
    for (var i = local; i < SIDE * FOURS; i += WORKGROUP) {
        let at = i % FOURS * 4u * PITCH + i / FOURS;
        let across = vec4(turned[at], turned[at + PITCH], turned[at + 2u * PITCH], turned[at + 3u * PITCH]);
        turns[item * SIDE * FOURS + i] = across;
    }
    if local == 0u {
        let moved = atomicLoad(&any);
        atomicStore(&rotated[3u * params.batch + item], moved);
        if moved != 0u {
            atomicStore(&rotated[flag(params.sweep + 1u, batch)], 1u);
        }
    }
}

// 32 x 32 that a workgroup turns: what two pairs share of the matrix, or a strip of a pair's vectors.
struct Tile {
    first: u32, // of the matrix
    is_vectors: bool,
    rows: vec2<u32>, // blocks
    cols: vec2<u32>,
    strip: u32, // the first column of vectors
}

fn col_of(own: Tile, i: u32) -> u32 {
    return select(row_of(own.cols, i), own.strip + i, own.is_vectors);
}

// The i-th four of a tile.
fn four(own: Tile, i: u32) -> vec4<f32> {
    let row = row_of(own.rows, i / FOURS);
    let col = col_of(own, 4u * (i % FOURS));
    return vec4(number(own, row, col), number(own, row, col + 1u), number(own, row, col + 2u), number(own, row, col + 3u));
}

fn number(own: Tile, row: u32, col: u32) -> f32 {
    if row >= params.n || col >= params.n {
        return 0.0;
    }
    if own.is_vectors {
        return v[own.first + row * params.n + col];
    }
    return work[address(own.first, row, col)];
}

// A workgroup for each tile of the matrix that two different pairs share, then for each strip of 32 columns of each pair's vectors.
@compute @workgroup_size(THREADS)
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
    let own = Tile(
        batch * n * n,
        is_vectors,
        pair(k.x, params.round, players()),
        pair(k.y, params.round, players()),
        (index - tiles) % strips * SIDE,
    );
    let of_rows = (batch * pairs + k.x) * SIDE * FOURS + local;
    let of_cols = (batch * pairs + k.y) * SIDE * FOURS + local;
    for (var i = 0u; i < SIDE * FOURS; i += THREADS) {
        left[local + i] = turns[of_rows + i];
        right[local + i] = four(own, local + i);
    }
    // for later
    var next = mat4x4(turns[of_cols], turns[of_cols + THREADS], turns[of_cols + 2u * THREADS], turns[of_cols + 3u * THREADS]);
    workgroupBarrier();

    let at = place(local);
    var block = product(at);
    workgroupBarrier();
    if !is_vectors {
        // and times the other's rotations, transposed
        share_left(at, block);
        for (var q = 0u; q < 4u; q++) {
            right[local + q * THREADS] = next[q];
        }
        workgroupBarrier();
        block = product(at);
    }
    for (var q = 0u; q < 4u; q++) {
        for (var c = 0u; c < 4u; c++) {
            let row = row_of(own.rows, 4u * at.x + q);
            let col = col_of(own, 4u * at.y + c);
            if row < n && col < n {
                if is_vectors {
                    v[own.first + row * n + col] = block[q][c];
                } else {
                    work[address(own.first, row, col)] = block[q][c];
                }
            }
        }
    }
}
