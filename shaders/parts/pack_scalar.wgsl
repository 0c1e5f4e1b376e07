// A thread makes one 32-bit word: one f32, or two 16-bit numbers.

@group(0) @binding(1) var<storage, read> src: array<u32>;
@group(0) @binding(2) var<storage, read_write> dst: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn pack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let word = (group.y * groups.x + group.x) * WORKGROUP + local;
    let at = params.dst_offset + word;
    if FORMAT == F32 {
        if word < params.count {
            dst[at] = src[params.src_offset + word];
        }
        return;
    }
    if 2u * word >= params.count {
        return;
    }
    let first = params.src_offset + 2u * word;
    let low = narrow(src[first]);
    if 2u * word + 1u < params.count {
        dst[at] = low | (narrow(src[first + 1u]) << 16u);
    } else {
        dst[at] = low | (dst[at] & 0xffff0000u); // the other half is not ours
    }
}
