// Cyclic Jacobi for symmetric matrices, a workgroup each: every round rotates n/2 disjoint pairs of rows and columns at
// once. Only the lower triangle of the working copy is kept. `start` and `order` serve `symmetric_eigen_blocks` too.

struct Params {
    n: u32,
    batch: u32,
    a_offset: u32,
    a_row_stride: u32,
    a_batch_stride: u32,
    values_offset: u32,
    values_batch_stride: u32,
    vectors_offset: u32,
    vectors_row_stride: u32,
    vectors_batch_stride: u32,
}

const MOST: u32 = 256; // the largest order
const WORKGROUP: u32 = 256; // a power of two, at most 256

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>; // in `start`: the matrices; in `order`: the eigenvectors
@group(0) @binding(2) var<storage, read_write> work: array<f32>; // batch x n x n, packed
@group(0) @binding(3) var<storage, read_write> v: array<f32>; // batch x n x n, packed; the eigenvectors are its rows
@group(0) @binding(4) var<storage, read_write> rotated: array<u32>; // whether the last sweep rotated anything
@group(0) @binding(5) var<storage, read> unsorted: array<f32>; // batch x n, packed
@group(0) @binding(6) var<storage, read_write> values: array<f32>;
@group(0) @binding(7) var<storage, read_write> vectors: array<f32>;

var<workgroup> largest: array<f32, MOST>;
var<workgroup> sine: array<f32, MOST / 2>;
var<workgroup> tau: array<f32, MOST / 2>;
var<workgroup> busy: u32;
var<workgroup> any: atomic<u32>;

//# include parts/tournament.wgsl

// work = a / 2^e, with its largest element in [1, 2), and v = I.
@compute @workgroup_size(WORKGROUP)
fn start(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let batch = matrix(group, groups);
    if batch >= params.batch {
        return;
    }
    let n = params.n;
    let from_a = params.a_offset + batch * params.a_batch_stride;
    var most = 0.0;
    for (var i = local; i < n * n; i += WORKGROUP) {
        most = max(most, abs(a[from_a + (i / n) * params.a_row_stride + i % n]));
    }
    largest[local] = most;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half {
            largest[local] = max(largest[local], largest[local + half]);
        }
    }
    workgroupBarrier();
    // The exponent field of 1 / 2^e, kept off its ends: there the scaling is only less than perfect.
    let exponent = clamp(bitcast<u32>(largest[0]) >> 23u, 1u, 253u);
    let scale = bitcast<f32>((254u - exponent) << 23u);
    let to = batch * n * n;
    for (var i = local; i < n * n; i += WORKGROUP) {
        work[to + i] = scale * a[from_a + (i / n) * params.a_row_stride + i % n];
        v[to + i] = select(0.0, 1.0, i / n == i % n);
    }
    if local == 0u {
        rotated[batch] = 1u;
        rotated[params.batch + batch] = 0u; // for `symmetric_eigen_blocks`
    }
}

fn at(first: u32, i: u32, j: u32) -> u32 {
    return first + max(i, j) * params.n + min(i, j);
}

// Chooses the rotation that makes a_pq zero; returns whether one is needed.
fn choose(first: u32, k: u32, pq: vec2<u32>) -> bool {
    sine[k] = 0.0;
    tau[k] = 0.0;
    if pq.y >= params.n {
        return false;
    }
    let off = work[at(first, pq.x, pq.y)];
    let pp = at(first, pq.x, pq.x);
    let qq = at(first, pq.y, pq.y);
    if is_negligible(off, work[pp], work[qq]) {
        return false;
    }
    let turn = rotation(off, work[pp], work[qq]);
    sine[k] = turn.sine;
    tau[k] = turn.tau;
    work[pp] -= turn.shift;
    work[qq] += turn.shift;
    work[at(first, pq.x, pq.y)] = 0.0;
    return true;
}

// Rotates the 2 x 2 block of rows `i` and columns `j` from both sides.
fn rotate_block(first: u32, i: vec2<u32>, j: vec2<u32>, ki: u32, kj: u32) {
    let bye_i = i.y >= params.n;
    let bye_j = j.y >= params.n;
    var top = vec2(work[at(first, i.x, j.x)], 0.0);
    var bottom = vec2(0.0);
    if !bye_j {
        top.y = work[at(first, i.x, j.y)];
    }
    if !bye_i {
        bottom.x = work[at(first, i.y, j.x)];
    }
    if !bye_i && !bye_j {
        bottom.y = work[at(first, i.y, j.y)];
    }
    let left = rotate(vec2(top.x, bottom.x), sine[ki], tau[ki]);
    let right = rotate(vec2(top.y, bottom.y), sine[ki], tau[ki]);
    top = rotate(vec2(left.x, right.x), sine[kj], tau[kj]);
    bottom = rotate(vec2(left.y, right.y), sine[kj], tau[kj]);
    work[at(first, i.x, j.x)] = top.x;
    if !bye_j {
        work[at(first, i.x, j.y)] = top.y;
    }
    if !bye_i {
        work[at(first, i.y, j.x)] = bottom.x;
    }
    if !bye_i && !bye_j {
        work[at(first, i.y, j.y)] = bottom.y;
    }
}

fn rotate_vectors(first: u32, pq: vec2<u32>, k: u32, col: u32) {
    if pq.y >= params.n || sine[k] == 0.0 {
        return;
    }
    let p = first + pq.x * params.n + col;
    let q = first + pq.y * params.n + col;
    let turned = rotate(vec2(v[p], v[q]), sine[k], tau[k]);
    v[p] = turned.x;
    v[q] = turned.y;
}

@compute @workgroup_size(WORKGROUP)
fn sweep(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let batch = matrix(group, groups);
    if batch >= params.batch {
        return;
    }
    if local == 0u {
        busy = rotated[batch];
        atomicStore(&any, 0u);
    }
    if workgroupUniformLoad(&busy) == 0u {
        return;
    }
    let n = params.n;
    let first = batch * n * n;
    let players = n + n % 2u;
    let pairs = players / 2u;
    let blocks = (pairs + 1u) / 2u * (pairs - 1u);
    for (var round = 0u; round + 1u < players; round++) {
        for (var k = local; k < pairs; k += WORKGROUP) {
            if choose(first, k, pair(k, round, players)) {
                atomicStore(&any, 1u);
            }
        }
        storageBarrier();
        workgroupBarrier();
        for (var i = local; i < blocks; i += WORKGROUP) {
            let block = below_diagonal(i, pairs);
            if block.x != block.y && (sine[block.x] != 0.0 || sine[block.y] != 0.0) {
                rotate_block(first, pair(block.x, round, players), pair(block.y, round, players), block.x, block.y);
            }
        }
        for (var i = local; i < pairs * n; i += WORKGROUP) {
            rotate_vectors(first, pair(i / n, round, players), i / n, i % n);
        }
        storageBarrier();
        workgroupBarrier();
    }
    if local == 0u {
        rotated[batch] = atomicLoad(&any);
    }
}

// Writes eigenvalues and eigenvectors, largest eigenvalue first. A thread ranks one eigenvalue and moves its vector.
@compute @workgroup_size(WORKGROUP)
fn order(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let item = matrix(group, groups) * WORKGROUP + local;
    if item >= params.batch * params.n {
        return;
    }
    let n = params.n;
    let batch = item / n;
    let i = item % n;
    let value = unsorted[item];
    var rank = 0u;
    for (var j = 0u; j < n; j++) {
        let other = unsorted[batch * n + j];
        if other > value || (other == value && j < i) {
            rank++;
        }
    }
    values[params.values_offset + batch * params.values_batch_stride + rank] = value;
    let to = params.vectors_offset + batch * params.vectors_batch_stride + rank * params.vectors_row_stride;
    for (var j = 0u; j < n; j++) {
        vectors[to + j] = a[item * n + j];
    }
}
