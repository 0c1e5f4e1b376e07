// How a product stores a result whose offsets, strides and rows are multiples of four numbers: four at a time.

@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;

// The epilogue of four numbers of a row. Past the last row it is that of the last: the sums are not stored.
fn epilogue_of_four(batch: u32, row: u32, j: u32, sums: vec4<f32>) -> vec4<f32> {
    let i = min(row, params.m - 1u);
    return vec4(
        epilogue(batch, i, j, sums.x),
        epilogue(batch, i, j + 1u, sums.y),
        epilogue(batch, i, j + 2u, sums.z),
        epilogue(batch, i, j + 3u, sums.w),
    );
}

// What is on the diagonal: the lower triangle, and its mirror image.
fn mirrored(x: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4(
        vec4(x[0].x, x[1].x, x[2].x, x[3].x),
        vec4(x[1].xy, x[2].y, x[3].y),
        vec4(x[2].xyz, x[3].z),
        x[3],
    );
}

// The columns of `products` are rows of c; i and j are multiples of four.
fn store_block(batch: u32, i: u32, j: u32, products: mat4x4<f32>) {
    if i >= params.m || j >= params.n || (TRIANGULAR && j > i) {
        return;
    }
    let first = (params.c_offset + batch * params.c_batch_stride) / 4u;
    let stride = params.c_row_stride / 4u;
    let at = first + i * stride + j / 4u;
    let rows = min(params.m - i, 4u);
    var block = params.alpha * products;
    if params.beta != 0.0 {
        // all four loads at once: past the last row it is read again
        let at_x = at + min(1u, rows - 1u) * stride;
        let at_y = at + min(2u, rows - 1u) * stride;
        let at_z = at + (rows - 1u) * stride;
        block += params.beta * mat4x4(c[at], c[at_x], c[at_y], c[at_z]);
    }
    if TRIANGULAR && i == j {
        block = mirrored(block);
    }
    block = mat4x4(
        epilogue_of_four(batch, i, j, block[0]),
        epilogue_of_four(batch, i + 1u, j, block[1]),
        epilogue_of_four(batch, i + 2u, j, block[2]),
        epilogue_of_four(batch, i + 3u, j, block[3]),
    );
    c[at] = block[0];
    if rows > 1u {
        c[at + stride] = block[1];
    }
    if rows > 2u {
        c[at + 2u * stride] = block[2];
    }
    if rows > 3u {
        c[at + 3u * stride] = block[3];
    }
    if TRIANGULAR && i != j {
        // here rows are as many as columns, whole fours
        let across = transpose(block);
        let mirror = first + j * stride + i / 4u;
        c[mirror] = across[0];
        c[mirror + stride] = across[1];
        c[mirror + 2u * stride] = across[2];
        c[mirror + 3u * stride] = across[3];
    }
}
