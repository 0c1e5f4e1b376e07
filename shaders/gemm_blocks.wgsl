// The product of `gemm_direct.wgsl`, for software adapters, on operands whose rows are whole vec4s: there a load of four
// numbers costs what one of a single number does, and tens of times what a multiplication costs. A workgroup of 4 x 4
// threads makes a tile of 64 x 64; a thread makes 16 x 16 of it, 4 x 4 blocks of 4 x 4, from operands read where they
// lie: 32 loads for 4096 multiplications.
//
// A block is kept as a mat4x4 whose columns are the block's rows: (a b) is then the WGSL product b * a.

//# include parts/formats.wgsl
//# include parts/load_vec4.wgsl
//# include parts/activation.wgsl
//# include parts/product.wgsl
//# include parts/store_scalar.wgsl

// Row k of a matrix that lies across the depth, and zeros past its end.
fn row_of_a(first: u32, k: u32) -> vec4<f32> {
    let row = load_four_a(first + min(k, params.k - 1u) * params.a_row_stride, 4u);
    return select(vec4(0.0), row, k < params.k);
}

fn row_of_b(first: u32, k: u32) -> vec4<f32> {
    let row = load_four_b(first + min(k, params.k - 1u) * params.b_row_stride, 4u);
    return select(vec4(0.0), row, k < params.k);
}

// The block of op(a) at row i and depth k. Past the edge the last row is read again; what it gives is not stored.
fn block_of_a(first: u32, i: u32, k: u32) -> mat4x4<f32> {
    if TRANSPOSE_A {
        let at = first + min(i, params.m - 4u);
        return transpose(mat4x4(row_of_a(at, k), row_of_a(at, k + 1u), row_of_a(at, k + 2u), row_of_a(at, k + 3u)));
    }
    let rows = first + k + min(vec4(i, i + 1u, i + 2u, i + 3u), vec4(params.m - 1u)) * params.a_row_stride;
    return mat4x4(load_four_a(rows.x, 4u), load_four_a(rows.y, 4u), load_four_a(rows.z, 4u), load_four_a(rows.w, 4u));
}

// The block of op(b) at depth k and column j, likewise.
fn block_of_b(first: u32, k: u32, j: u32) -> mat4x4<f32> {
    if TRANSPOSE_B {
        let rows = first + k + min(vec4(j, j + 1u, j + 2u, j + 3u), vec4(params.n - 1u)) * params.b_row_stride;
        let columns =
            mat4x4(load_four_b(rows.x, 4u), load_four_b(rows.y, 4u), load_four_b(rows.z, 4u), load_four_b(rows.w, 4u));
        return transpose(columns);
    }
    let at = first + min(j, params.n - 4u);
    return mat4x4(row_of_b(at, k), row_of_b(at, k + 1u), row_of_b(at, k + 2u), row_of_b(at, k + 3u));
}

@compute @workgroup_size(16)
fn gemm_blocks(
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
    let i = corner.x + 16u * (local / 4u);
    let j = corner.y + 16u * (local % 4u);
    if i >= params.m || j >= params.n || (TRIANGULAR && j > i) || !is_wanted(i + 16u, j) {
        return;
    }
    let a_first = params.a_offset + batch * params.a_batch_stride;
    let b_first = params.b_offset + batch * params.b_batch_stride;

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
    store_block(batch, i, j, c00);
    store_block(batch, i, j + 4u, c01);
    store_block(batch, i, j + 8u, c02);
    store_block(batch, i, j + 12u, c03);
    store_block(batch, i + 4u, j, c10);
    store_block(batch, i + 4u, j + 4u, c11);
    store_block(batch, i + 4u, j + 8u, c12);
    store_block(batch, i + 4u, j + 12u, c13);
    store_block(batch, i + 8u, j, c20);
    store_block(batch, i + 8u, j + 4u, c21);
    store_block(batch, i + 8u, j + 8u, c22);
    store_block(batch, i + 8u, j + 12u, c23);
    store_block(batch, i + 12u, j, c30);
    store_block(batch, i + 12u, j + 4u, c31);
    store_block(batch, i + 12u, j + 8u, c32);
    store_block(batch, i + 12u, j + 12u, c33);
}
