// Copies a block of matrices between two layouts, as integers, so that every bit survives.

struct Params {
    count: u32,
    rows: u32,
    cols: u32,
    src_offset: u32,
    src_row_stride: u32,
    src_batch_stride: u32,
    dst_offset: u32,
    dst_row_stride: u32,
    dst_batch_stride: u32,
}

//# include parts/elements_{scalar,vec4}.wgsl

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<Bits>;
@group(0) @binding(2) var<storage, read_write> dst: array<Bits>;

@compute @workgroup_size(WORKGROUP)
fn copy_block(
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
    let to = params.dst_offset + batch * params.dst_batch_stride + row * params.dst_row_stride + col;
    dst[to] = src[params.src_offset + batch * params.src_batch_stride + row * params.src_row_stride + col];
}
