// The product of `gemm.wgsl` for software adapters, where barriers are dear and workgroup memory is no faster than any
// other: a thread makes 8 x 4 of a tile of 32 x 32 and reads both operands where they lie.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    tiles: u32, // of a matrix of the batch
    a_offset: u32,
    a_row_stride: u32,
    a_batch_stride: u32,
    b_offset: u32,
    b_row_stride: u32,
    b_batch_stride: u32,
    c_offset: u32,
    c_row_stride: u32,
    c_batch_stride: u32,
    alpha: f32,
    beta: f32,
}

const TILE: u32 = 32;

override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;
override TRIANGULAR: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;

// Row and column of the tile: row-major, or, of the triangle, row by row.
fn tile_at(index: u32) -> vec2<u32> {
    if !TRIANGULAR {
        let across = (params.n + TILE - 1u) / TILE;
        return vec2(index / across, index % across);
    }
    // The root is rounded; at most one step either way puts it right.
    var row = u32((sqrt(8.0 * f32(index) + 1.0) - 1.0) * 0.5);
    while row * (row + 1u) / 2u > index {
        row--;
    }
    while (row + 1u) * (row + 2u) / 2u <= index {
        row++;
    }
    return vec2(row, index - row * (row + 1u) / 2u);
}

fn store(batch: u32, i: u32, j: u32, product: f32) {
    if i >= params.m || j >= params.n || (TRIANGULAR && j > i) {
        return;
    }
    let first = params.c_offset + batch * params.c_batch_stride;
    let at = first + i * params.c_row_stride + j;
    var value = params.alpha * product;
    if params.beta != 0.0 {
        value += params.beta * c[at];
    }
    c[at] = value;
    if TRIANGULAR {
        c[first + j * params.c_row_stride + i] = value;
    }
}

fn store_four(batch: u32, i: u32, j: u32, products: vec4<f32>) {
    store(batch, i, j, products.x);
    store(batch, i, j + 1u, products.y);
    store(batch, i, j + 2u, products.z);
    store(batch, i, j + 3u, products.w);
}

@compute @workgroup_size(32)
fn gemm_direct(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = group.y * groups.x + group.x;
    if index >= params.tiles {
        return;
    }
    let batch = group.z;
    let corner = TILE * tile_at(index);
    let i = corner.x + 8u * (local / 8u);
    let j = corner.y + 4u * (local % 8u);
    if i >= params.m || j >= params.n {
        return;
    }

    // Past the edge the last row or column is read again; what it gives is not stored.
    let a_row = select(params.a_row_stride, 1u, TRANSPOSE_A);
    let a_step = select(1u, params.a_row_stride, TRANSPOSE_A);
    let b_col = select(1u, params.b_row_stride, TRANSPOSE_B);
    let b_step = select(params.b_row_stride, 1u, TRANSPOSE_B);
    let a_first = params.a_offset + batch * params.a_batch_stride;
    let b_first = params.b_offset + batch * params.b_batch_stride;
    let last_row = params.m - 1u;
    let last_col = params.n - 1u;
    let a0 = a_first + i * a_row;
    let a1 = a_first + min(i + 1u, last_row) * a_row;
    let a2 = a_first + min(i + 2u, last_row) * a_row;
    let a3 = a_first + min(i + 3u, last_row) * a_row;
    let a4 = a_first + min(i + 4u, last_row) * a_row;
    let a5 = a_first + min(i + 5u, last_row) * a_row;
    let a6 = a_first + min(i + 6u, last_row) * a_row;
    let a7 = a_first + min(i + 7u, last_row) * a_row;
    let b0 = b_first + j * b_col;
    let b1 = b_first + min(j + 1u, last_col) * b_col;
    let b2 = b_first + min(j + 2u, last_col) * b_col;
    let b3 = b_first + min(j + 3u, last_col) * b_col;

    var row0 = vec4(0.0);
    var row1 = vec4(0.0);
    var row2 = vec4(0.0);
    var row3 = vec4(0.0);
    var row4 = vec4(0.0);
    var row5 = vec4(0.0);
    var row6 = vec4(0.0);
    var row7 = vec4(0.0);
    for (var k = 0u; k < params.k; k++) {
        let to_a = k * a_step;
        let to_b = k * b_step;
        let y = vec4(b[b0 + to_b], b[b1 + to_b], b[b2 + to_b], b[b3 + to_b]);
        row0 += a[a0 + to_a] * y;
        row1 += a[a1 + to_a] * y;
        row2 += a[a2 + to_a] * y;
        row3 += a[a3 + to_a] * y;
        row4 += a[a4 + to_a] * y;
        row5 += a[a5 + to_a] * y;
        row6 += a[a6 + to_a] * y;
        row7 += a[a7 + to_a] * y;
    }
    store_four(batch, i, j, row0);
    store_four(batch, i + 1u, j, row1);
    store_four(batch, i + 2u, j, row2);
    store_four(batch, i + 3u, j, row3);
    store_four(batch, i + 4u, j, row4);
    store_four(batch, i + 5u, j, row5);
    store_four(batch, i + 6u, j, row6);
    store_four(batch, i + 7u, j, row7);
}
