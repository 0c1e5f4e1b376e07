// x = 2^k, the power of two that brings x between 1 and 2, element by element, for x >= 0: by its exponent alone, so that it is
// exact. k stays within 126 of 0, so that 2^-k is a number too; 0 gets the largest.

struct Params {
    count: u32,
    offset: u32,
}

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn unit_scale(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i >= params.count {
        return;
    }
    let exponent = (bitcast<u32>(x[params.offset + i]) >> 23u) & 255u;
    let turned = 254u - min(exponent, 253u);
    x[params.offset + i] = bitcast<f32>(min(turned, 253u) << 23u);
}
