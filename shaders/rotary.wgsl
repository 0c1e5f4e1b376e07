// In every head of row i, the pair (x_j, x_(j + half)) is turned by the angle with cosine cos[i, j] and sine sin[i, j].
// A thread takes one pair.

struct Params {
    count: u32, // pairs in all
    pairs: u32, // of a row
    half: u32, // pairs of a head
    head_dim: u32, // columns of a head
    x_offset: u32,
    x_row_stride: u32,
    cos_offset: u32,
    cos_row_stride: u32,
    sin_offset: u32,
    sin_row_stride: u32,
}

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cosines: array<f32>;
@group(0) @binding(2) var<storage, read> sines: array<f32>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn rotary(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i >= params.count {
        return;
    }
    let row = i / params.pairs;
    let pair = i % params.pairs;
    let j = pair % params.half;
    let left = params.x_offset + row * params.x_row_stride + pair / params.half * params.head_dim + j;
    let right = left + params.half;
    let c = cosines[params.cos_offset + row * params.cos_row_stride + j];
    let s = sines[params.sin_offset + row * params.sin_row_stride + j];
    let a = x[left];
    let b = x[right];
    x[left] = a * c - b * s;
    x[right] = b * c + a * s;
}
