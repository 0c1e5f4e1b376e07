// The product of `gemm.wgsl` for software adapters, where barriers are dear, workgroup memory is no faster than any other,
// and a load costs as much as ten multiplications: a workgroup of 4 x 8 threads makes a tile of 64 x 64, a thread 16 x 8
// of it, in eight matrices of 4 x 4, and reads both operands where they lie.

//# include parts/formats.wgsl
//# include parts/load_scalar.wgsl
//# include parts/activation.wgsl
//# include parts/product.wgsl
//# include parts/outer.wgsl
//# include parts/store_scalar.wgsl

// Where four rows of op(a) begin. Past the edge the last one is read again; what it gives is not stored.
fn four_rows(first: u32, i: u32, stride: u32) -> vec4<u32> {
    return first + min(vec4(i, i + 1u, i + 2u, i + 3u), vec4(params.m - 1u)) * stride;
}

// Where four columns of op(b) begin, likewise.
fn four_columns(first: u32, j: u32, stride: u32) -> vec4<u32> {
    return first + min(vec4(j, j + 1u, j + 2u, j + 3u), vec4(params.n - 1u)) * stride;
}

fn four_of_a(at: vec4<u32>) -> vec4<f32> {
    return vec4(load_a(at.x), load_a(at.y), load_a(at.z), load_a(at.w));
}

fn four_of_b(at: vec4<u32>) -> vec4<f32> {
    return vec4(load_b(at.x), load_b(at.y), load_b(at.z), load_b(at.w));
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
    let corner = vec2(TILE_M, TILE_N) * tile_at(index);
    let i = corner.x + 16u * (local / 8u);
    let j = corner.y + 8u * (local % 8u);
    if i >= params.m || j >= params.n || !is_wanted(i + 16u, j) {
        return;
    }

    let a_row = select(params.a_row_stride, 1u, TRANSPOSE_A);
    let a_step = select(1u, params.a_row_stride, TRANSPOSE_A);
    let b_col = select(1u, params.b_row_stride, TRANSPOSE_B);
    let b_step = select(params.b_row_stride, 1u, TRANSPOSE_B);
    let a_first = params.a_offset + batch * params.a_batch_stride;
    let b_first = params.b_offset + batch * params.b_batch_stride;
    let a0 = four_rows(a_first, i, a_row);
    let a1 = four_rows(a_first, i + 4u, a_row);
    let a2 = four_rows(a_first, i + 8u, a_row);
    let a3 = four_rows(a_first, i + 12u, a_row);
    let b0 = four_columns(b_first, j, b_col);
    let b1 = four_columns(b_first, j + 4u, b_col);

    var c00 = mat4x4<f32>();
    var c01 = mat4x4<f32>();
    var c10 = mat4x4<f32>();
    var c11 = mat4x4<f32>();
    var c20 = mat4x4<f32>();
    var c21 = mat4x4<f32>();
    var c30 = mat4x4<f32>();
    var c31 = mat4x4<f32>();
    for (var k = 0u; k < params.k; k++) {
        let y0 = four_of_b(b0 + k * b_step);
        let y1 = four_of_b(b1 + k * b_step);
        let x0 = four_of_a(a0 + k * a_step);
        c00 += outer(x0, y0);
        c01 += outer(x0, y1);
        let x1 = four_of_a(a1 + k * a_step);
        c10 += outer(x1, y0);
        c11 += outer(x1, y1);
        let x2 = four_of_a(a2 + k * a_step);
        c20 += outer(x2, y0);
        c21 += outer(x2, y1);
        let x3 = four_of_a(a3 + k * a_step);
        c30 += outer(x3, y0);
        c31 += outer(x3, y1);
    }
    store_block(batch, i, j, c00);
    store_block(batch, i, j + 4u, c01);
    store_block(batch, i + 4u, j, c10);
    store_block(batch, i + 4u, j + 4u, c11);
    store_block(batch, i + 8u, j, c20);
    store_block(batch, i + 8u, j + 4u, c21);
    store_block(batch, i + 12u, j, c30);
    store_block(batch, i + 12u, j + 4u, c31);
}
