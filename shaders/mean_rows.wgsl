// out[s, :] = mean of x[i, :] over the rows i of segment s, starts[s] to starts[s + 1]. A thread takes one column of one
// segment.

struct Params {
    count: u32, // segments * cols
    cols: u32,
    x_rows: u32,
    x_offset: u32,
    x_row_stride: u32,
    starts_offset: u32,
    out_offset: u32,
    out_row_stride: u32,
}

const WORKGROUP: u32 = 64;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> starts: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn mean_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i >= params.count {
        return;
    }
    let segment = i / params.cols;
    let col = i % params.cols;
    let first = starts[params.starts_offset + segment];
    // an end beyond the rows is the caller's mistake, not a reason to read beyond them
    let end = min(starts[params.starts_offset + segment + 1u], params.x_rows);
    // four sums side by side: shorter chains of roundings
    var sums = vec4<f32>();
    var row = first;
    for (; row + 4u <= end; row += 4u) {
        let at = params.x_offset + row * params.x_row_stride + col;
        let s = params.x_row_stride;
        sums += vec4<f32>(x[at], x[at + s], x[at + 2u * s], x[at + 3u * s]);
    }
    var sum = (sums.x + sums.y) + (sums.z + sums.w);
    for (; row < end; row += 1u) {
        sum += x[params.x_offset + row * params.x_row_stride + col];
    }
    out[params.out_offset + segment * params.out_row_stride + col] = sum / max(1.0, f32(end - first));
}
