// c = f(s (alpha op(a) op(b) + beta c) + bias) for a batch of matrices, on hardware GPUs: both operands pass through workgroup memory in
// tiles. What is done with a sum, and the order of the tiles, is in parts/product.wgsl; how numbers are read, and of what
// type, in parts/load_*.wgsl.

//# include parts/load_{scalar,vec4}.wgsl
//# include parts/activation.wgsl
//# include parts/product.wgsl

override DOWN: u32 = 16; // threads of a workgroup down a tile
override ACROSS: u32 = 16; // and across it
override DEPTH: u32 = 16; // columns of op(a) and rows of op(b) in workgroup memory; a multiple of 4
override WORKGROUP: u32 = DOWN * ACROSS;
override PITCH_A: u32 = TILE_M / 4 + 1; // vec4s from one depth to the next, one of them against bank conflicts
override PITCH_B: u32 = TILE_N / 4 + 1;
override SIZE_A: u32 = DEPTH * PITCH_A;
override SIZE_B: u32 = DEPTH * PITCH_B;

var<workgroup> tile_a: array<vec4<f32>, SIZE_A>; // op(a), transposed: by depth, then by rows
var<workgroup> tile_b: array<vec4<f32>, SIZE_B>;

// How many of four numbers from `first` on there are before `end`.
fn left(first: u32, end: u32) -> u32 {
    return min(end - min(first, end), 4u);
}

// Four numbers of each of four lines of memory; `lines` of them exist, and `count` numbers of each.
fn four_lines_of_a(at: u32, stride: u32, count: u32, lines: u32) -> mat4x4<f32> {
    return mat4x4(
        load_four_a(at, select(0u, count, lines > 0u)),
        load_four_a(at + stride, select(0u, count, lines > 1u)),
        load_four_a(at + 2u * stride, select(0u, count, lines > 2u)),
        load_four_a(at + 3u * stride, select(0u, count, lines > 3u)),
    );
}

fn four_lines_of_b(at: u32, stride: u32, count: u32, lines: u32) -> mat4x4<f32> {
    return mat4x4(
        load_four_b(at, select(0u, count, lines > 0u)),
        load_four_b(at + stride, select(0u, count, lines > 1u)),
        load_four_b(at + 2u * stride, select(0u, count, lines > 2u)),
        load_four_b(at + 3u * stride, select(0u, count, lines > 3u)),
    );
}

// Rows i to i + 3 of op(a), columns k to k + 3: a column of the result is one depth.
fn block_of_a(batch: u32, i: u32, k: u32) -> mat4x4<f32> {
    let first = params.a_offset + batch * params.a_batch_stride;
    let stride = params.a_row_stride;
    if TRANSPOSE_A {
        return four_lines_of_a(first + k * stride + i, stride, left(i, params.m), left(k, params.k));
    }
    return transpose(four_lines_of_a(first + i * stride + k, stride, left(k, params.k), left(i, params.m)));
}

// Rows k to k + 3 of op(b), columns j to j + 3: a column of the result is one depth.
fn block_of_b(batch: u32, k: u32, j: u32) -> mat4x4<f32> {
    let first = params.b_offset + batch * params.b_batch_stride;
    let stride = params.b_row_stride;
    if TRANSPOSE_B {
        return transpose(four_lines_of_b(first + j * stride + k, stride, left(k, params.k), left(j, params.n)));
    }
    return four_lines_of_b(first + k * stride + j, stride, left(j, params.n), left(k, params.k));
}

// Stages what the tile needs of DEPTH columns of op(a) and rows of op(b), in blocks of 4 x 4. Neighbouring threads read
// neighbouring numbers of memory, whichever way an operand lies.
fn stage(batch: u32, corner: vec2<u32>, k: u32, local: u32) {
    const DEEP: u32 = 4u;
    let blocks = DEPTH / DEEP;
    for (var item = local; item < blocks * (TILE_M / 4u); item += WORKGROUP) {
        let down = select(item / blocks, item % (TILE_M / 4u), TRANSPOSE_A);
        let deep = DEEP * select(item % blocks, item / (TILE_M / 4u), TRANSPOSE_A);
        let block = block_of_a(batch, corner.x + 4u * down, k + deep);
        let at = deep * PITCH_A + down;
        tile_a[at] = block[0];
        tile_a[at + PITCH_A] = block[1];
        tile_a[at + 2u * PITCH_A] = block[2];
        tile_a[at + 3u * PITCH_A] = block[3];
    }
    for (var item = local; item < blocks * (TILE_N / 4u); item += WORKGROUP) {
        let across = select(item % (TILE_N / 4u), item / blocks, TRANSPOSE_B);
        let deep = DEEP * select(item / (TILE_N / 4u), item % blocks, TRANSPOSE_B);
        let block = block_of_b(batch, k + deep, corner.y + 4u * across);
        let at = deep * PITCH_B + across;
        tile_b[at] = block[0];
        tile_b[at + PITCH_B] = block[1];
        tile_b[at + 2u * PITCH_B] = block[2];
        tile_b[at + 3u * PITCH_B] = block[3];
    }
}

// A thread makes 4 x 4 of the tile.
@compute @workgroup_size(WORKGROUP)
fn gemm_tiled(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = group.y * groups.x + group.x;
    if index >= params.tiles {
        return;
    }
    let batch = group.z;
    let corner = vec2(TILE_M, TILE_N) * tile_at(index);
    let slow = local / ACROSS;
    let fast = local % ACROSS;

    var sum = mat4x4<f32>();
    for (var k = 0u; k < params.k; k += DEPTH) {
        stage(batch, corner, k, local);
        workgroupBarrier();
        for (var depth = 0u; depth < DEPTH; depth += 4u) {
            let at_a = depth * PITCH_A + slow;
            let at_b = depth * PITCH_B + fast;
            sum += outer(tile_a[at_a], tile_b[at_b]);
            sum += outer(tile_a[at_a + PITCH_A], tile_b[at_b + PITCH_B]);
            sum += outer(tile_a[at_a + 2u * PITCH_A], tile_b[at_b + 2u * PITCH_B]);
            sum += outer(tile_a[at_a + 3u * PITCH_A], tile_b[at_b + 3u * PITCH_B]);
        }
        workgroupBarrier();
    }
    store_block(batch, corner.x + 4u * slow, corner.y + 4u * fast, sum);
}

// A thread makes 8 x 8 of the tile, in four blocks half a tile apart, so that threads side by side read side by side.
@compute @workgroup_size(WORKGROUP)
fn gemm_large(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = group.y * groups.x + group.x;
    if index >= params.tiles {
        return;
    }
    let batch = group.z;
    let corner = vec2(TILE_M, TILE_N) * tile_at(index);
    let slow = local / ACROSS;
    let fast = local % ACROSS;

    var sum00 = mat4x4<f32>();
    var sum01 = mat4x4<f32>();
    var sum10 = mat4x4<f32>();
    var sum11 = mat4x4<f32>();
    for (var k = 0u; k < params.k; k += DEPTH) {
        stage(batch, corner, k, local);
        workgroupBarrier();
        for (var depth = 0u; depth < DEPTH; depth++) {
            let at_a = depth * PITCH_A + slow;
            let at_b = depth * PITCH_B + fast;
            let x0 = tile_a[at_a];
            let x1 = tile_a[at_a + DOWN];
            let y0 = tile_b[at_b];
            let y1 = tile_b[at_b + ACROSS];
            sum00 += outer(x0, y0);
            sum01 += outer(x0, y1);
            sum10 += outer(x1, y0);
            sum11 += outer(x1, y1);
        }
        workgroupBarrier();
    }
    let i = corner.x + 4u * slow;
    let j = corner.y + 4u * fast;
    store_block(batch, i, j, sum00);
    store_block(batch, i, j + 4u * ACROSS, sum01);
    store_block(batch, i + 4u * DOWN, j, sum10);
    store_block(batch, i + 4u * DOWN, j + 4u * ACROSS, sum11);
}
