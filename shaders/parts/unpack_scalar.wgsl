// A thread takes one 32-bit word of the source: one f32, or two 16-bit numbers.

@group(0) @binding(1) var<storage, read> src: array<u32>;
@group(0) @binding(2) var<storage, read_write> dst: array<u32>;

// Element `at` of the source, unless the wrap of an unsigned subtraction or the end puts it outside.
fn store(at: u32, bits: u32) {
    if at < params.count {
        dst[params.dst_offset + at] = bits;
    }
}

@compute @workgroup_size(WORKGROUP)
fn unpack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let thread = (group.y * groups.x + group.x) * WORKGROUP + local;
    if FORMAT == F32 {
        if thread < params.count {
            dst[params.dst_offset + thread] = src[params.src_offset + thread];
        }
        return;
    }
    let word = params.src_offset / 2u + thread;
    if 2u * word >= params.src_offset + params.count {
        return;
    }
    let bits = src[word];
    store(2u * word - params.src_offset, widen(bits & 0xffffu));
    store(2u * word + 1u - params.src_offset, widen(bits >> 16u));
}
