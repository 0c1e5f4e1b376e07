// `unpack` of float16 by the device's own conversion: four numbers a thread. Used where the device has 16-bit floats and gave the
// right f32 for each of them. Parameters count fours.

enable f16;

struct Params {
    count: u32,
    src_offset: u32,
    dst_offset: u32,
}

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read_write> dst: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn unpack_f16(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let thread = (group.y * groups.x + group.x) * WORKGROUP + local;
    if thread < params.count {
        dst[params.dst_offset + thread] = vec4<f32>(src[params.src_offset + thread]);
    }
}
