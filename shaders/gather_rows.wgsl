// out[i, :] = x[rows[i], :]

struct Params {
    count: u32,
    cols: u32,
    x_rows: u32,
    x_offset: u32,
    x_row_stride: u32,
    rows_offset: u32,
    out_offset: u32,
    out_row_stride: u32,
}

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> rows: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn gather_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i >= params.count {
        return;
    }
    let row = i / params.cols;
    let col = i % params.cols;
    // a number beyond the rows is the caller's mistake, not a reason to read beyond them
    let source = min(rows[params.rows_offset + row], params.x_rows - 1u);
    out[params.out_offset + row * params.out_row_stride + col] =
        x[params.x_offset + source * params.x_row_stride + col];
}
