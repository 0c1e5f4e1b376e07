// How a product stores its result: one number at a time, wherever it lies.

@group(0) @binding(3) var<storage, read_write> c: array<f32>;

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
    value = epilogue(batch, i, j, value);
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

// The columns of `products` are rows of c.
fn store_block(batch: u32, i: u32, j: u32, products: mat4x4<f32>) {
    store_four(batch, i, j, products[0]);
    store_four(batch, i + 1u, j, products[1]);
    store_four(batch, i + 2u, j, products[2]);
    store_four(batch, i + 3u, j, products[3]);
}
