// x[b, i, j] *= s[b, i, j], where s repeats along the directions whose stride is 0: a factor for every row, every
// column or every matrix. With DIVIDE x is divided by s instead, and becomes 0 where s is 0.

struct Params {
    count: u32,
    rows: u32,
    cols: u32,
    x_offset: u32,
    x_row_stride: u32,
    x_batch_stride: u32,
    s_offset: u32,
    s_batch_stride: u32,
    s_row_stride: u32,
    s_col_stride: u32, // between the columns that threads start at
    s_next: u32, // from a column to the next
}

//# include parts/elements_{scalar,vec4}.wgsl

const WORKGROUP: u32 = 256;
override DIVIDE: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> s: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<Elements>;

//# include parts/factors_{scalar,vec4}.wgsl

@compute @workgroup_size(WORKGROUP)
fn scale(
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
    let first = params.s_offset + batch * params.s_batch_stride + row * params.s_row_stride + col * params.s_col_stride;
    let factor = factors(first, params.s_next);
    let at = params.x_offset + batch * params.x_batch_stride + row * params.x_row_stride + col;
    if DIVIDE {
        x[at] = select(x[at] / factor, Elements(0.0), factor == Elements(0.0));
    } else {
        x[at] *= factor;
    }
}
