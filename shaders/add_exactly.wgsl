// high + low += x, where high is the nearest f32 of the sum and low what it misses: about twice the precision of f32
// (Knuth's two-sum, then a renormalisation).

struct Params {
    count: u32,
    x_offset: u32,
    high_offset: u32,
    low_offset: u32,
}

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> high: array<f32>;
@group(0) @binding(3) var<storage, read_write> low: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn add_exactly(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i >= params.count {
        return;
    }
    let a = high[params.high_offset + i];
    let b = x[params.x_offset + i];
    let sum = a + b;
    let of_b = sum - a;
    let missed = (a - (sum - of_b)) + (b - of_b);
    let rest = low[params.low_offset + i] + missed;
    let nearest = sum + rest;
    high[params.high_offset + i] = nearest;
    low[params.low_offset + i] = rest - (nearest - sum);
}
