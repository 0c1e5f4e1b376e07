// c = alpha op(a) op(b) + beta c for a batch of matrices, on hardware GPUs. A workgroup of SIDE x SIDE threads makes a
// square tile, a thread 4 x 4 of it, and both operands pass through workgroup memory 16 deep. With TRIANGULAR only the
// tiles on and below the diagonal are made, and written on both sides of it: the symmetric rank-k update.

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

const DEPTH: u32 = 16;
const PITCH: u32 = 17; // vec4s from one depth to the next: 16 at most, and one against bank conflicts

override SIDE: u32 = 16; // 16 for tiles of 64 x 64, 8 for tiles of 32 x 32, where those would be too few
override TILE: u32 = 4 * SIDE;
override WORKGROUP: u32 = SIDE * SIDE;
override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;
override TRIANGULAR: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;

var<workgroup> tile_a: array<vec4<f32>, DEPTH * PITCH>;
var<workgroup> tile_b: array<vec4<f32>, DEPTH * PITCH>;

fn element_a(batch: u32, i: u32, k: u32) -> f32 {
    if i >= params.m || k >= params.k {
        return 0.0;
    }
    let first = params.a_offset + batch * params.a_batch_stride;
    if TRANSPOSE_A {
        return a[first + k * params.a_row_stride + i];
    }
    return a[first + i * params.a_row_stride + k];
}

fn element_b(batch: u32, k: u32, j: u32) -> f32 {
    if j >= params.n || k >= params.k {
        return 0.0;
    }
    let first = params.b_offset + batch * params.b_batch_stride;
    if TRANSPOSE_B {
        return b[first + j * params.b_row_stride + k];
    }
    return b[first + k * params.b_row_stride + j];
}

fn four_of_a(batch: u32, i: u32, k: u32) -> vec4<f32> {
    return vec4(
        element_a(batch, i, k),
        element_a(batch, i + 1u, k),
        element_a(batch, i + 2u, k),
        element_a(batch, i + 3u, k),
    );
}

fn four_of_b(batch: u32, k: u32, j: u32) -> vec4<f32> {
    return vec4(
        element_b(batch, k, j),
        element_b(batch, k, j + 1u),
        element_b(batch, k, j + 2u),
        element_b(batch, k, j + 3u),
    );
}

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

// Stages what the tile needs of `DEPTH` columns of op(a) and rows of op(b). Neighbouring threads read neighbouring
// numbers of memory, whichever way an operand lies.
fn stage(batch: u32, corner: vec2<u32>, k: u32, local: u32) {
    for (var item = local; item < DEPTH * SIDE; item += WORKGROUP) {
        let along_rows = vec2(item % DEPTH, item / DEPTH);
        let along_columns = vec2(item / SIDE, item % SIDE);
        let of_a = select(along_rows, along_columns, TRANSPOSE_A);
        let of_b = select(along_columns, along_rows, TRANSPOSE_B);
        tile_a[of_a.x * PITCH + of_a.y] = four_of_a(batch, corner.x + 4u * of_a.y, k + of_a.x);
        tile_b[of_b.x * PITCH + of_b.y] = four_of_b(batch, k + of_b.x, corner.y + 4u * of_b.y);
    }
}

@compute @workgroup_size(WORKGROUP)
fn gemm(
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
    let slow = local / SIDE;
    let fast = local % SIDE;

    var row0 = vec4(0.0);
    var row1 = vec4(0.0);
    var row2 = vec4(0.0);
    var row3 = vec4(0.0);
    for (var k = 0u; k < params.k; k += DEPTH) {
        stage(batch, corner, k, local);
        workgroupBarrier();
        for (var depth = 0u; depth < DEPTH; depth += 4u) {
            let at_a = depth * PITCH + slow;
            let at_b = depth * PITCH + fast;
            var x = tile_a[at_a];
            var y = tile_b[at_b];
            row0 += x.x * y;
            row1 += x.y * y;
            row2 += x.z * y;
            row3 += x.w * y;
            x = tile_a[at_a + PITCH];
            y = tile_b[at_b + PITCH];
            row0 += x.x * y;
            row1 += x.y * y;
            row2 += x.z * y;
            row3 += x.w * y;
            x = tile_a[at_a + 2u * PITCH];
            y = tile_b[at_b + 2u * PITCH];
            row0 += x.x * y;
            row1 += x.y * y;
            row2 += x.z * y;
            row3 += x.w * y;
            x = tile_a[at_a + 3u * PITCH];
            y = tile_b[at_b + 3u * PITCH];
            row0 += x.x * y;
            row1 += x.y * y;
            row2 += x.z * y;
            row3 += x.w * y;
        }
        workgroupBarrier();
    }
    let i = corner.x + 4u * slow;
    let j = corner.y + 4u * fast;
    store_four(batch, i, j, row0);
    store_four(batch, i + 1u, j, row1);
    store_four(batch, i + 2u, j, row2);
    store_four(batch, i + 3u, j, row3);
}
