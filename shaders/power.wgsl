// x = x^exponent, element by element, for x >= 0; 0 stays 0 whatever the exponent, as the norm of nothing.

struct Params {
    count: u32,
    offset: u32,
    exponent: f32,
}

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn power(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i >= params.count {
        return;
    }
    let value = x[params.offset + i];
    if value > 0.0 {
        x[params.offset + i] = pow(value, params.exponent);
    }
}
