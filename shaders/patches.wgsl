// Square patches of images as rows, the im2col of a convolution whose stride is its kernel:
// out[patch, (channel, y, x)] = images[sample * channels + channel, top + y, left + x].

struct Params {
    count: u32,
    cols: u32, // channels * size * size
    channels: u32,
    size: u32,
    across: u32, // patches side by side
    patches: u32, // of an image
    images_offset: u32,
    images_row_stride: u32,
    images_batch_stride: u32,
    out_offset: u32,
    out_row_stride: u32,
}

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> images: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn patches(
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
    let sample = row / params.patches;
    let patch_index = row % params.patches;
    let x = patch_index % params.across * params.size + col % params.size;
    let y = patch_index / params.across * params.size + col / params.size % params.size;
    let plane = sample * params.channels + col / (params.size * params.size);
    out[params.out_offset + row * params.out_row_stride + col] =
        images[params.images_offset + plane * params.images_batch_stride + y * params.images_row_stride + x];
}
