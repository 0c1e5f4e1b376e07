// The blocked inverse Cholesky factorization but for its large products, which are `gemm.wgsl`'s. Everything happens in one matrix,
// `work`, of which the lower triangle counts: left of the block of 32 columns that is being eliminated it holds what will be
// the rows of the result, right of it what is left to factor. Four blocks make a panel. What a panel takes out of the rows
// below it is one product, of `row` transposed with `row`; what its blocks take out of each other, they see to themselves.

//# include parts/outer.wgsl
//# include parts/square.wgsl

struct Params {
    n: u32,
    batch: u32,
    fours: u32, // of a row of `work` and `row`: all of them, rounded up
    g_offset: u32,
    g_row_stride: u32,
    g_batch_stride: u32,
    w_offset: u32,
    w_row_stride: u32,
    w_batch_stride: u32,
    start: u32, // first row of the panel
    width: u32, // rows of a panel, a multiple of 32
    first: u32, // first row of the diagonal block
    smallest: f32, // pivots below it are lifted to it
}

const WORKGROUP: u32 = 256; // of `equilibrate`

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> g: array<f32>; // batch x n x n
@group(0) @binding(2) var<storage, read_write> work: array<vec4<f32>>; // batch x 4 fours x 4 fours
@group(0) @binding(3) var<storage, read_write> w: array<f32>; // batch x n x n
// Of the diagonal block of L: its inverse, transposed; the same as the rows of L below it need it; its inverse times S.
@group(0) @binding(4) var<storage, read_write> inverse: array<vec4<f32>>; // batch x 3 x 32 x 32
@group(0) @binding(5) var<storage, read_write> column: array<vec4<f32>>; // batch x width x width: L^T of the panel
// The panel's rows of the result; zeros; L^T of what is below the panel.
@group(0) @binding(6) var<storage, read_write> row: array<vec4<f32>>; // batch x width x 4 fours

// The smallest f32 that no device takes for 0.
const SMALLEST_NORMAL: f32 = 0x1p-126;

// What makes the i-th diagonal element 1; 0 where it is 0, so that the row and column vanish, and beyond the matrix.
fn scale(batch: u32, i: u32) -> f32 {
    if i >= params.n {
        return 0.0;
    }
    let diagonal = g[params.g_offset + batch * params.g_batch_stride + i * (params.g_row_stride + 1u)];
    if diagonal >= SMALLEST_NORMAL {
        return inverseSqrt(diagonal);
    }
    return 0.0;
}

fn element(batch: u32, i: u32, j: u32) -> f32 {
    if i == j {
        return 1.0;
    }
    if i >= params.n || j >= params.n {
        return 0.0;
    }
    return g[params.g_offset + batch * params.g_batch_stride + i * params.g_row_stride + j] * scale(batch, j);
}

// work = S g S, with S = diag(g)^(-1/2): of the lower triangle, in fours.
@compute @workgroup_size(WORKGROUP)
fn equilibrate(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = (group.y * groups.x + group.x) * WORKGROUP + local;
    let order = 4u * params.fours;
    if at >= params.batch * order * params.fours {
        return;
    }
    let j = 4u * (at % params.fours);
    let i = (at / params.fours) % order;
    let batch = at / params.fours / order;
    if j > i {
        return;
    }
    let s = scale(batch, i);
    let values =
        vec4(element(batch, i, j), element(batch, i, j + 1u), element(batch, i, j + 2u), element(batch, i, j + 3u));
    work[at] = select(s * values, values, vec4(i) == vec4(j, j + 1u, j + 2u, j + 3u));
}

// Four of `work`; zeros beyond it.
fn work_at(batch: u32, i: u32, four: u32) -> vec4<f32> {
    if i >= params.n || four >= params.fours {
        return vec4(0.0);
    }
    return work[(batch * 4u * params.fours + i) * params.fours + four];
}

// A thread's block of the 32 x 32 whose first row is `i` and whose first four of columns is `four`.
fn block_of_work(batch: u32, i: u32, four: u32) -> mat4x4<f32> {
    return mat4x4(
        work_at(batch, i, four),
        work_at(batch, i + 1u, four),
        work_at(batch, i + 2u, four),
        work_at(batch, i + 3u, four),
    );
}

fn column_at(batch: u32, depth: u32, four: u32) -> u32 {
    return (batch * params.width + depth) * (params.width / 4u) + four;
}

fn row_at(batch: u32, depth: u32, four: u32) -> u32 {
    return (batch * params.width + depth) * params.fours + four;
}

fn inverse_at(batch: u32, which: u32, line: u32, four: u32) -> u32 {
    return ((batch * 3u + which) * SIDE + line) * FOURS + four;
}

// The inverse of L of a 4 x 4 diagonal block, and which of its columns are kept. Where a pivot is lifted, what stands below it is
// rounding, which the division would blow up: there L gets zeros.
struct Pivots {
    inverse: mat4x4<f32>,
    kept: vec4<bool>,
}

fn reciprocal_root(square: f32) -> f32 {
    return 1.0 / sqrt(max(square, params.smallest));
}

fn is_kept(square: f32) -> bool {
    return !(square < params.smallest);
}

// Only the lower triangle is read.
fn pivots(block: mat4x4<f32>) -> Pivots {
    let c = transpose(block);
    var found: Pivots;
    let k0 = is_kept(c[0].x);
    let p0 = reciprocal_root(c[0].x);
    let l0 = select(vec4(0.0), c[0] * p0, k0);
    let x0 = vec4(p0, 0.0, 0.0, 0.0);

    let c1 = c[1] - l0 * l0.y;
    let k1 = is_kept(c1.y);
    let p1 = reciprocal_root(c1.y);
    let l1 = select(vec4(0.0), c1 * p1, k1);
    let x1 = p1 * (vec4(0.0, 1.0, 0.0, 0.0) - l0.y * x0);

    let c2 = c[2] - l0 * l0.z - l1 * l1.z;
    let k2 = is_kept(c2.z);
    let p2 = reciprocal_root(c2.z);
    let l2 = select(vec4(0.0), c2 * p2, k2);
    let x2 = p2 * (vec4(0.0, 0.0, 1.0, 0.0) - l0.z * x0 - l1.z * x1);

    let c3 = c[3].w - l0.w * l0.w - l1.w * l1.w - l2.w * l2.w;
    let p3 = reciprocal_root(c3);
    let x3 = p3 * (vec4(0.0, 0.0, 0.0, 1.0) - l0.w * x0 - l1.w * x1 - l2.w * x2);
    found.inverse = mat4x4(x0, x1, x2, x3);
    found.kept = vec4(k0, k1, k2, is_kept(c3));
    return found;
}

// The inverse with zeros for the rows of columns that are not kept.
fn for_below(found: Pivots) -> mat4x4<f32> {
    return mat4x4(
        select(vec4(0.0), found.inverse[0], found.kept.x),
        select(vec4(0.0), found.inverse[1], found.kept.y),
        select(vec4(0.0), found.inverse[2], found.kept.z),
        select(vec4(0.0), found.inverse[3], found.kept.w),
    );
}

var<workgroup> diagonal: mat4x4<f32>; // what is left of the next 4 x 4 on the diagonal
var<workgroup> across: array<mat4x4<f32>, FOURS>; // four rows of the inverse, then four rows of L^T
var<workgroup> kept: array<vec4<u32>, FOURS>;

// Fills `inverse` for the diagonal block at `first`. A workgroup takes one matrix, a thread 4 x 4 of it: in each of eight steps it is
// of L as long as the step is left of it, then of the inverse, so that none has nothing to do.
@compute @workgroup_size(THREADS)
fn factor(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let batch = group.y * groups.x + group.x;
    if batch >= params.batch {
        return;
    }
    let at = place(local);
    let i = params.first + 4u * at.x;
    var own = block_of_work(batch, i, params.first / 4u + at.y);
    for (var depth = params.start; depth < params.first; depth += SIDE) {
        for (var item = local; item < SIDE * FOURS; item += THREADS) {
            let four = (params.first - params.start) / 4u + item % FOURS;
            let value = column[column_at(batch, depth - params.start + item / FOURS, four)];
            left[item] = value;
            right[item] = value;
        }
        workgroupBarrier();
        own -= product(at);
        workgroupBarrier();
    }
    if at.x == at.y {
        // beyond the matrix it is the identity
        own = mat4x4(
            select(vec4(1.0, 0.0, 0.0, 0.0), own[0], i < params.n),
            select(vec4(0.0, 1.0, 0.0, 0.0), own[1], i + 1u < params.n),
            select(vec4(0.0, 0.0, 1.0, 0.0), own[2], i + 2u < params.n),
            select(vec4(0.0, 0.0, 0.0, 1.0), own[3], i + 3u < params.n),
        );
    }
    if local == 0u {
        diagonal = own;
    }
    for (var step = 0u; step < FOURS; step++) {
        workgroupBarrier();
        if (at.x == step && at.y <= step) || (at.y == step && at.x > step) {
            let found = pivots(diagonal);
            if at.x > step {
                across[at.x] = transpose(own) * for_below(found);
                own = mat4x4<f32>();
            } else if at.y < step {
                own = own * found.inverse;
                across[at.y] = own;
            } else if at.y == step {
                own = found.inverse;
                across[at.y] = own;
                kept[step] = vec4<u32>(found.kept);
            }
        }
        workgroupBarrier();
        if at.x > step && at.y <= at.x {
            own -= across[at.y] * transpose(across[at.x]);
            if at.x == step + 1u && at.y == at.x {
                diagonal = own;
            }
        }
    }
    if at.y > at.x {
        own = mat4x4<f32>();
    }
    var lines = transpose(own);
    let is_for_below = kept[at.x] != vec4(0u);
    let j = params.first + 4u * at.y;
    let s = vec4(scale(batch, j), scale(batch, j + 1u), scale(batch, j + 2u), scale(batch, j + 3u));
    for (var q = 0u; q < 4u; q++) {
        inverse[inverse_at(batch, 0u, 4u * at.y + q, at.x)] = lines[q];
        inverse[inverse_at(batch, 1u, 4u * at.y + q, at.x)] = select(vec4(0.0), lines[q], is_for_below);
        inverse[inverse_at(batch, 2u, 4u * at.x + q, at.y)] = own[q] * s;
    }
}

// Finishes the block's rows of the result, and makes the rows of L^T below it. A workgroup takes 32 columns of one or of the other.
@compute @workgroup_size(THREADS)
fn panel(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tiles = (params.n + SIDE - 1u) / SIDE;
    let item = group.y * groups.x + group.x;
    if item >= params.batch * tiles {
        return;
    }
    let batch = item / tiles;
    let corner = item % tiles * SIDE; // the first of the columns
    let at = place(local);
    let is_below = corner > params.first;
    let is_inside = is_below && corner < params.start + params.width; // of the panel
    let skipped = params.first - params.start;
    let i = corner + 4u * at.y; // of the rows below, if they are
    var own: mat4x4<f32>;
    if corner == params.first {
        for (var q = 0u; q < 4u; q++) {
            own[q] = inverse[inverse_at(batch, 2u, 4u * at.x + q, at.y)];
        }
    } else {
        if is_below {
            own = transpose(block_of_work(batch, i, params.first / 4u + at.x));
        } else {
            own = block_of_work(batch, params.first + 4u * at.x, corner / 4u + at.y);
        }
        for (var depth = 0u; depth < skipped; depth += SIDE) {
            for (var k = local; k < SIDE * FOURS; k += THREADS) {
                let line = depth + k / FOURS;
                left[k] = column[column_at(batch, line, skipped / 4u + k % FOURS)];
                let four = corner / 4u + k % FOURS;
                if is_inside {
                    right[k] = column[column_at(batch, line, four - params.start / 4u)];
                } else if four < params.fours {
                    right[k] = row[row_at(batch, line, four)];
                } else {
                    right[k] = vec4(0.0);
                }
            }
            workgroupBarrier();
            own -= product(at);
            workgroupBarrier();
        }
        for (var k = local; k < SIDE * FOURS; k += THREADS) {
            left[k] = inverse[inverse_at(batch, u32(is_below), k / FOURS, k % FOURS)];
        }
        share_right(at, own);
        workgroupBarrier();
        own = product(at);
    }
    store_panel(batch, corner, at, own);
}

fn store_panel(batch: u32, corner: u32, at: vec2<u32>, block: mat4x4<f32>) {
    let is_below = corner > params.first;
    let is_inside = is_below && corner < params.start + params.width;
    let skipped = params.first - params.start + 4u * at.x;
    let four = corner / 4u + at.y;
    var lines = block; // in a variable, to be indexed
    for (var q = 0u; q < 4u; q++) {
        let i = params.first + 4u * at.x + q;
        var line = select(lines[q], vec4(0.0), is_below);
        for (var c = 0u; c < 4u; c++) {
            let j = 4u * four + c;
            if i < params.n && j < params.n {
                w[params.w_offset + batch * params.w_batch_stride + i * params.w_row_stride + j] = line[c];
            }
        }
        if is_inside {
            column[column_at(batch, skipped + q, four - params.start / 4u)] = lines[q];
        }
        if four < params.fours {
            row[row_at(batch, skipped + q, four)] = select(lines[q], vec4(0.0), is_inside);
        }
        // from here on what `work` holds there belongs to the result
        let below = 4u * four + q;
        if is_below && below < params.n && params.first / 4u + at.x < params.fours {
            work[(batch * 4u * params.fours + below) * params.fours + params.first / 4u + at.x] = vec4(0.0);
        }
    }
}
