// A thread takes four numbers. Parameters count fours.

@group(0) @binding(1) var<storage, read> src: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> dst: array<vec4<u32>>;

@compute @workgroup_size(WORKGROUP)
fn unpack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let thread = (group.y * groups.x + group.x) * WORKGROUP + local;
    if thread >= params.count {
        return;
    }
    let source = params.src_offset + thread;
    let to = params.dst_offset + thread;
    if FORMAT == F32 {
        dst[to] = vec4(src[2u * source], src[2u * source + 1u]);
        return;
    }
    let words = src[source];
    let low = words & vec2(0xffffu);
    let high = words >> vec2(16u);
    dst[to] = vec4(widen(low.x), widen(high.x), widen(low.y), widen(high.y));
}
