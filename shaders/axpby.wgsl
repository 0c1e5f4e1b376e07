// y = alpha x + beta y. With beta = 0 what y held is not read, NaN included; so too x with alpha = 0.

struct Params {
    count: u32,
    rows: u32,
    cols: u32,
    x_offset: u32,
    x_row_stride: u32,
    x_batch_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_batch_stride: u32,
    alpha: f32,
    beta: f32,
}

//# include parts/elements_{scalar,vec4}.wgsl

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elements>;
@group(0) @binding(2) var<storage, read_write> y: array<Elements>;

@compute @workgroup_size(WORKGROUP)
fn axpby(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i >= params.count {
        return;
    }
    let col = i % params.cols;
    let row = (i / params.cols) % params.rows;
    let batch = i / params.cols / params.rows;
    let at = params.y_offset + batch * params.y_batch_stride + row * params.y_row_stride + col;
    var value = Elements(0.0);
    if params.alpha != 0.0 {
        value = params.alpha * x[params.x_offset + batch * params.x_batch_stride + row * params.x_row_stride + col];
    }
    if params.beta != 0.0 {
        value += params.beta * y[at];
    }
    y[at] = value;
}
