// The two parts of the blocked inverse Cholesky factorization that are not products: scaling the matrix, and
// factoring and inverting one diagonal block. The products between them are `gemm.wgsl`'s.

struct Params {
    n: u32,
    batch: u32,
    g_offset: u32,
    g_row_stride: u32,
    g_batch_stride: u32,
    w_offset: u32,
    w_row_stride: u32,
    w_batch_stride: u32,
    first: u32, // first row of the diagonal block
    size: u32, // rows of the block, at most 32
    smallest: f32, // pivots below it are lifted to it
}

const BLOCK: u32 = 32;
const PITCH: u32 = 33; // one more than a block, against bank conflicts

override WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> g: array<f32>; // batch x n x n
@group(0) @binding(2) var<storage, read_write> work: array<f32>; // batch x n x n, packed
@group(0) @binding(3) var<storage, read_write> w: array<f32>; // batch x n x n
@group(0) @binding(4) var<storage, read_write> inverse: array<f32>; // batch x 2 x 32 x 32, packed

var<workgroup> l: array<f32, BLOCK * PITCH>;
var<workgroup> x: array<f32, BLOCK * PITCH>;
var<workgroup> lifted: array<u32, BLOCK>;

// The smallest f32 that no device takes for 0.
const SMALLEST_NORMAL: f32 = 0x1p-126;

// What makes the i-th diagonal element 1; 0 where it is 0, so that the row and column vanish.
fn scale(batch: u32, i: u32) -> f32 {
    let diagonal = g[params.g_offset + batch * params.g_batch_stride + i * (params.g_row_stride + 1u)];
    if diagonal >= SMALLEST_NORMAL {
        return inverseSqrt(diagonal);
    }
    return 0.0;
}

// work = S g S and w = S, with S = diag(g)^(-1/2).
@compute @workgroup_size(WORKGROUP)
fn equilibrate(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = (group.y * groups.x + group.x) * WORKGROUP + local;
    if at >= params.batch * params.n * params.n {
        return;
    }
    let j = at % params.n;
    let i = (at / params.n) % params.n;
    let batch = at / params.n / params.n;
    let s = scale(batch, i);
    let value = g[params.g_offset + batch * params.g_batch_stride + i * params.g_row_stride + j];
    work[at] = select(s * value * scale(batch, j), 1.0, i == j);
    w[params.w_offset + batch * params.w_batch_stride + i * params.w_row_stride + j] = select(0.0, s, i == j);
}

// inverse[0] = L^(-1), with L L^T the diagonal block of `work` at `first`. Where a pivot is lifted, what stands below it
// is rounding, which the division would blow up: there L gets zeros, and inverse[1], which makes the rows of L below
// the block, a row of zeros. A workgroup takes one matrix, a thread one row of L, then one column of its inverse.
@compute @workgroup_size(BLOCK)
fn factor(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let batch = group.y * groups.x + group.x;
    if batch >= params.batch {
        return;
    }
    let corner = batch * params.n * params.n + params.first * (params.n + 1u);
    for (var j = 0u; j < BLOCK; j++) {
        var value = 0.0;
        if local < params.size && j <= local {
            value = work[corner + local * params.n + j];
        }
        l[local * PITCH + j] = value;
        x[local * PITCH + j] = 0.0;
    }
    workgroupBarrier();

    for (var j = 0u; j < params.size; j++) {
        let square = l[j * PITCH + j];
        let pivot = sqrt(max(square, params.smallest));
        workgroupBarrier();
        if local == j {
            l[j * PITCH + j] = pivot;
            lifted[j] = u32(square < params.smallest);
        }
        if local > j {
            l[local * PITCH + j] = select(l[local * PITCH + j] / pivot, 0.0, square < params.smallest);
        }
        workgroupBarrier();
        if local > j {
            let factor = l[local * PITCH + j];
            for (var k = j + 1u; k <= local; k++) {
                l[local * PITCH + k] -= factor * l[k * PITCH + j];
            }
        }
        workgroupBarrier();
    }

    if local < params.size {
        x[local * PITCH + local] = 1.0 / l[local * PITCH + local];
        for (var i = local + 1u; i < params.size; i++) {
            var sum = 0.0;
            for (var k = local; k < i; k++) {
                sum += l[i * PITCH + k] * x[k * PITCH + local];
            }
            x[i * PITCH + local] = -sum / l[i * PITCH + i];
        }
    }
    workgroupBarrier();
    let row = (batch * 2u * BLOCK + local) * BLOCK;
    for (var j = 0u; j < BLOCK; j++) {
        let value = x[local * PITCH + j];
        inverse[row + j] = value;
        inverse[row + BLOCK * BLOCK + j] = select(value, 0.0, local < params.size && lifted[local] == 1u);
    }
}
