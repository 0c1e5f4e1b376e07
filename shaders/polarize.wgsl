// The polarized scaling rule, g = (v / mean v)^exponent, over all elements of a matrix, in place. A workgroup takes one
// matrix: it sums, then scales.

struct Params {
    batch: u32,
    count: u32, // elements of a matrix
    offset: u32,
    batch_stride: u32,
    exponent: f32,
}

const FULL: u32 = 0;
const AMPLIFY: u32 = 1;
const SUPPRESS: u32 = 2;
const REVERSED: u32 = 3;

const WORKGROUP: u32 = 256; // a power of two, at most 256
override POLARITY: u32 = FULL;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> v: array<f32>;

var<workgroup> sums: array<f32, WORKGROUP>;

// x^exponent for x >= 0. The exponents in use are 1, 2 and 3, which products give to a few roundings; `pow` goes
// through logarithms and loses more.
fn power(x: f32, exponent: f32) -> f32 {
    if exponent == 1.0 {
        return x;
    }
    if exponent == 2.0 {
        return x * x;
    }
    if exponent == 3.0 {
        return x * x * x;
    }
    if exponent == 0.0 {
        return 1.0;
    }
    if x > 0.0 {
        return pow(x, exponent);
    }
    return 0.0;
}

fn turn(g: f32) -> f32 {
    if POLARITY == AMPLIFY {
        return max(g, 1.0);
    }
    if POLARITY == SUPPRESS {
        return min(g, 1.0);
    }
    if POLARITY == REVERSED {
        if g > 0.0 {
            return 1.0 / g;
        }
        return 0.0;
    }
    return g;
}

@compute @workgroup_size(WORKGROUP)
fn polarize(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let batch = group_id.y * groups.x + group_id.x;
    if batch >= params.batch {
        return;
    }
    let first = params.offset + batch * params.batch_stride;
    var sum = 0.0;
    for (var i = local; i < params.count; i += WORKGROUP) {
        sum += v[first + i];
    }
    sums[local] = sum;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half {
            sums[local] += sums[local + half];
        }
    }
    workgroupBarrier();
    let mean = sums[0] / f32(params.count);
    for (var i = local; i < params.count; i += WORKGROUP) {
        var g = 0.0;
        if mean > 0.0 {
            g = power(v[first + i] / mean, params.exponent);
        }
        v[first + i] = turn(g);
    }
}
