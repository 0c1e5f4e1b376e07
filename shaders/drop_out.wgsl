// Keeps each number with a probability, and makes the others zero. Chance comes from a counter, the place of the number in its
// tensor, and all is integer arithmetic: the same numbers stay on every device.

struct Params {
    count: u32,
    x_offset: u32,
    ranks_offset: u32,
    first: u32, // place of the first number in its tensor
    key_low: u32,
    key_high: u32,
    least: u32, // probability in units of 2^-24: of all, or of the smallest of a row
    span: u32, // what is added for the largest
    cols: u32,
}

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read> ranks: array<f32>;

//# include parts/threefry.wgsl

fn chance(place: u32) -> u32 {
    return threefry(vec2(params.key_low, params.key_high), vec2(place, 0u)).x >> 8u;
}

// All with the same probability.
@compute @workgroup_size(WORKGROUP)
fn drop_out(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i < params.count && chance(params.first + i) >= params.least {
        x[params.x_offset + i] = 0u;
    }
}

// With one that rises linearly with the rank in the row, from `least` to `least + span`.
@compute @workgroup_size(WORKGROUP)
fn drop_out_by_rank(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i >= params.count {
        return;
    }
    // span * rank / steps in 32 bits; the remainder's share only where its product fits
    let steps = max(params.cols, 2u) - 1u;
    let rank = u32(ranks[params.ranks_offset + i]);
    var rise = params.span / steps * rank;
    if steps < 65536u {
        rise += params.span % steps * rank / steps;
    }
    if chance(params.first + i) >= params.least + rise {
        x[params.x_offset + i] = 0u;
    }
}
