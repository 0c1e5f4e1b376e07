// x = f(x), or in the second entry point x = f(x) * up, element by element.

struct Params {
    count: u32,
    x_offset: u32,
    up_offset: u32,
}

//# include parts/activation.wgsl

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> up: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn activate(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i < params.count {
        x[params.x_offset + i] = f(x[params.x_offset + i]);
    }
}

@compute @workgroup_size(WORKGROUP)
fn activate_gated(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i < params.count {
        x[params.x_offset + i] = f(x[params.x_offset + i]) * up[params.up_offset + i];
    }
}
