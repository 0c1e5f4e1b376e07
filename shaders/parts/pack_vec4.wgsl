// A thread makes four numbers. Parameters count fours.

@group(0) @binding(1) var<storage, read> src: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> dst: array<vec2<u32>>;

@compute @workgroup_size(WORKGROUP)
fn pack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let thread = (group.y * groups.x + group.x) * WORKGROUP + local;
    if thread >= params.count {
        return;
    }
    let bits = src[params.src_offset + thread];
    let to = params.dst_offset + thread;
    if FORMAT == F32 {
        dst[2u * to] = bits.xy;
        dst[2u * to + 1u] = bits.zw;
        return;
    }
    let low = vec2(narrow(bits.x), narrow(bits.z));
    let high = vec2(narrow(bits.y), narrow(bits.w));
    dst[to] = low | (high << vec2(16u));
}
