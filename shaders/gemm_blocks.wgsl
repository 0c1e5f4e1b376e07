// The product of `gemm.wgsl` for software adapters, on operands whose rows are whole vec4s. There a load costs as much
// for four neighbouring numbers as for one, and tens of times what a multiplication costs; workgroup memory is no faster
// than any other. So a thread makes 16 x 16 of c, 4 x 4 blocks of 4 x 4, from operands read where they lie, four numbers
// at a time: 32 loads for 4096 multiplications.
//
// A block is kept as a mat4x4 whose columns are the block's rows: (a b) is then the WGSL product b * a.

struct Params {
    m: u32, // at least 4
    n: u32, // a multiple of 4
    k: u32, // a multiple of 4, but for a transposed and b not
    tiles: u32, // of a matrix of the batch
    a_offset: u32, // offsets and strides: multiples of 4
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

const TILE: u32 = 16;
const THREADS: u32 = 8;

override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;
override TRIANGULAR: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;

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

// A block that reaches past the edge is moved back onto it: what it gives there is not stored.
fn inside(at: u32, end: u32) -> u32 {
    return min(at, end - 4u);
}

// Row k of a matrix that lies across the depth, and zeros past its end.
fn row_of_a(first: u32, k: u32) -> vec4<f32> {
    let row = a[(first + min(k, params.k - 1u) * params.a_row_stride) / 4u];
    return select(vec4(0.0), row, k < params.k);
}

fn row_of_b(first: u32, k: u32) -> vec4<f32> {
    let row = b[(first + min(k, params.k - 1u) * params.b_row_stride) / 4u];
    return select(vec4(0.0), row, k < params.k);
}

// The block of op(a) at row i and depth k.
fn block_of_a(first: u32, i: u32, k: u32) -> mat4x4<f32> {
    if TRANSPOSE_A {
        let at = first + inside(i, params.m);
        let columns = mat4x4(row_of_a(at, k), row_of_a(at, k + 1u), row_of_a(at, k + 2u), row_of_a(at, k + 3u));
        return transpose(columns);
    }
    let at = (first + inside(i, params.m) * params.a_row_stride + k) / 4u;
    let row = params.a_row_stride / 4u;
    return mat4x4(a[at], a[at + row], a[at + 2u * row], a[at + 3u * row]);
}

// The block of op(b) at depth k and column j.
fn block_of_b(first: u32, k: u32, j: u32) -> mat4x4<f32> {
    if TRANSPOSE_B {
        let at = (first + inside(j, params.n) * params.b_row_stride + k) / 4u;
        let row = params.b_row_stride / 4u;
        return transpose(mat4x4(b[at], b[at + row], b[at + 2u * row], b[at + 3u * row]));
    }
    let at = first + inside(j, params.n);
    return mat4x4(row_of_b(at, k), row_of_b(at, k + 1u), row_of_b(at, k + 2u), row_of_b(at, k + 3u));
}

fn store_row(at: u32, product: vec4<f32>) {
    if params.beta == 0.0 {
        c[at] = params.alpha * product;
    } else {
        c[at] = params.alpha * product + params.beta * c[at];
    }
}

// The block of c at row i and column j, but for rows that the block before it stores.
fn store(first: u32, i: u32, j: u32, product: mat4x4<f32>) {
    if i >= params.m || j >= params.n {
        return;
    }
    if TRIANGULAR {
        store_both(first, i, j, product);
        return;
    }
    let start = inside(i, params.m);
    let at = (first + start * params.c_row_stride + j) / 4u;
    let row = params.c_row_stride / 4u;
    if start >= i {
        store_row(at, product[0]);
    }
    if start + 1u >= i {
        store_row(at + row, product[1]);
    }
    if start + 2u >= i {
        store_row(at + 2u * row, product[2]);
    }
    store_row(at + 3u * row, product[3]);
}

// A block on or below the diagonal of a symmetric c, and its mirror image. Only the lower triangle of c is read.
fn store_both(first: u32, i: u32, j: u32, product: mat4x4<f32>) {
    if j > i {
        return;
    }
    let row = params.c_row_stride / 4u;
    let below = (first + i * params.c_row_stride + j) / 4u;
    var block = params.alpha * product;
    if params.beta != 0.0 {
        block += params.beta * mat4x4(c[below], c[below + row], c[below + 2u * row], c[below + 3u * row]);
    }
    if i == j {
        block = mirrored(block);
    } else {
        let above = (first + j * params.c_row_stride + i) / 4u;
        let turned = transpose(block);
        c[above] = turned[0];
        c[above + row] = turned[1];
        c[above + 2u * row] = turned[2];
        c[above + 3u * row] = turned[3];
    }
    c[below] = block[0];
    c[below + row] = block[1];
    c[below + 2u * row] = block[2];
    c[below + 3u * row] = block[3];
}

// A symmetric block from its lower triangle.
fn mirrored(x: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4(
        vec4(x[0].x, x[1].x, x[2].x, x[3].x),
        vec4(x[1].x, x[1].y, x[2].y, x[3].y),
        vec4(x[2].x, x[2].y, x[2].z, x[3].z),
        x[3],
    );
}

@compute @workgroup_size(THREADS)
fn gemm_blocks(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * THREADS + local;
    if index >= params.tiles {
        return;
    }
    let batch = group.z;
    let a_first = params.a_offset + batch * params.a_batch_stride;
    let b_first = params.b_offset + batch * params.b_batch_stride;
    let c_first = params.c_offset + batch * params.c_batch_stride;
    let corner = TILE * tile_at(index);
    let i = corner.x;
    let j = corner.y;

    var c00 = mat4x4<f32>();
    var c01 = mat4x4<f32>();
    var c02 = mat4x4<f32>();
    var c03 = mat4x4<f32>();
    var c10 = mat4x4<f32>();
    var c11 = mat4x4<f32>();
    var c12 = mat4x4<f32>();
    var c13 = mat4x4<f32>();
    var c20 = mat4x4<f32>();
    var c21 = mat4x4<f32>();
    var c22 = mat4x4<f32>();
    var c23 = mat4x4<f32>();
    var c30 = mat4x4<f32>();
    var c31 = mat4x4<f32>();
    var c32 = mat4x4<f32>();
    var c33 = mat4x4<f32>();
    for (var k = 0u; k < params.k; k += 4u) {
        let b0 = block_of_b(b_first, k, j);
        let b1 = block_of_b(b_first, k, j + 4u);
        let b2 = block_of_b(b_first, k, j + 8u);
        let b3 = block_of_b(b_first, k, j + 12u);
        let a0 = block_of_a(a_first, i, k);
        c00 += b0 * a0;
        c01 += b1 * a0;
        c02 += b2 * a0;
        c03 += b3 * a0;
        let a1 = block_of_a(a_first, i + 4u, k);
        c10 += b0 * a1;
        c11 += b1 * a1;
        c12 += b2 * a1;
        c13 += b3 * a1;
        let a2 = block_of_a(a_first, i + 8u, k);
        c20 += b0 * a2;
        c21 += b1 * a2;
        c22 += b2 * a2;
        c23 += b3 * a2;
        let a3 = block_of_a(a_first, i + 12u, k);
        c30 += b0 * a3;
        c31 += b1 * a3;
        c32 += b2 * a3;
        c33 += b3 * a3;
    }
    store(c_first, i, j, c00);
    store(c_first, i, j + 4u, c01);
    store(c_first, i, j + 8u, c02);
    store(c_first, i, j + 12u, c03);
    store(c_first, i + 4u, j, c10);
    store(c_first, i + 4u, j + 4u, c11);
    store(c_first, i + 4u, j + 8u, c12);
    store(c_first, i + 4u, j + 12u, c13);
    store(c_first, i + 8u, j, c20);
    store(c_first, i + 8u, j + 4u, c21);
    store(c_first, i + 8u, j + 8u, c22);
    store(c_first, i + 8u, j + 12u, c23);
    store(c_first, i + 12u, j, c30);
    store(c_first, i + 12u, j + 4u, c31);
    store(c_first, i + 12u, j + 8u, c32);
    store(c_first, i + 12u, j + 12u, c33);
}
