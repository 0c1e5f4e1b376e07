// What the tasks of a merge make of each element together: `x` holds the element of every task, one matrix apart, and `out` one.

struct Params {
    count: u32,
    tasks: u32,
    x_offset: u32,
    x_stride: u32, // from one task to the next
    factors_offset: u32,
    out_offset: u32,
    number: f32,
    least: u32,
}

const WORKGROUP: u32 = 256;

// By what an elected sum is divided: by nothing, or by the weights that agree, unless they are 0 or held to 1e-6.
const NEVER: u32 = 0;
const UNLESS_ZERO: u32 = 1;
const BY_SOME: u32 = 2;
override DIVIDE: u32 = NEVER;

override SHARED: bool = false; // wanted is what other tasks have too, not what they lack

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> factors: array<f32>; // one a task, or two
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

struct Place {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
}

fn element(place: Place) -> u32 {
    return (place.group.y * place.groups.x + place.group.x) * WORKGROUP + place.local;
}

fn value(i: u32, task: u32) -> f32 {
    return x[params.x_offset + task * params.x_stride + i];
}

fn factor(task: u32) -> f32 {
    return factors[params.factors_offset + task];
}

// sum_t f_t x_t of the first factors.
fn weighted_sum(i: u32) -> f32 {
    var sum = 0.0;
    for (var t = 0u; t < params.tasks; t++) {
        sum += factor(t) * value(i, t);
    }
    return sum;
}

// sum_t w_t x_t
@compute @workgroup_size(WORKGROUP)
fn weigh(place: Place) {
    let i = element(place);
    if i >= params.count {
        return;
    }
    out[params.out_offset + i] = weighted_sum(i);
}

// 1 where sum_t v_t x_t > 0.
@compute @workgroup_size(WORKGROUP)
fn positive(place: Place) {
    let i = element(place);
    if i >= params.count {
        return;
    }
    out[params.out_offset + i] = select(0.0, 1.0, weighted_sum(i) > 0.0);
}

// The sign of sum_t v_t x_t is elected, + where it is 0; sum_t w_t x_t over the tasks whose v_t x_t has it.
@compute @workgroup_size(WORKGROUP)
fn elect(place: Place) {
    let i = element(place);
    if i >= params.count {
        return;
    }
    let elected = select(-1.0, 1.0, weighted_sum(i) >= 0.0);
    var sum = 0.0;
    var weights = 0.0;
    for (var t = 0u; t < params.tasks; t++) {
        let own = value(i, t);
        // signs, not the product, which may underflow
        if sign(factor(t)) * sign(own) == elected {
            let weight = factor(params.tasks + t);
            sum += weight * own;
            weights += weight;
        }
    }
    if DIVIDE == UNLESS_ZERO && weights != 0.0 {
        sum /= weights;
    }
    if DIVIDE == BY_SOME {
        sum /= max(weights, 1e-6);
    }
    out[params.out_offset + i] = sum;
}

// A task has the element where |x_t| > number: the mean over those that have it, or f_t x_t where one alone does.
@compute @workgroup_size(WORKGROUP)
fn share(place: Place) {
    let i = element(place);
    if i >= params.count {
        return;
    }
    var sum = 0.0;
    var alone = 0.0;
    var having = 0u;
    for (var t = 0u; t < params.tasks; t++) {
        let own = value(i, t);
        if abs(own) > params.number {
            sum += own;
            alone = factor(t) * own;
            having += 1u;
        }
    }
    var result = 0.0;
    if having == 1u {
        result = alone;
    }
    if having > 1u {
        result = sum / f32(having);
    }
    out[params.out_offset + i] = result;
}

// 1 where task `least` has the element, |x_t| > number, and so has another if SHARED, or else none has.
@compute @workgroup_size(WORKGROUP)
fn having(place: Place) {
    let i = element(place);
    if i >= params.count {
        return;
    }
    var others = 0u;
    for (var t = 0u; t < params.tasks; t++) {
        if t != params.least && abs(value(i, t)) > params.number {
            others += 1u;
        }
    }
    let own = abs(value(i, params.least)) > params.number;
    out[params.out_offset + i] = select(0.0, 1.0, own && SHARED == (others > 0u));
}

// sum_t x_t where at least `least` tasks count: |x_t| > f_t |sum_s x_s - x_t|.
@compute @workgroup_size(WORKGROUP)
fn agree(place: Place) {
    let i = element(place);
    if i >= params.count {
        return;
    }
    var sum = 0.0;
    for (var t = 0u; t < params.tasks; t++) {
        sum += value(i, t);
    }
    var counted = 0u;
    for (var t = 0u; t < params.tasks; t++) {
        let own = value(i, t);
        if abs(own) > factor(t) * abs(sum - own) {
            counted += 1u;
        }
    }
    out[params.out_offset + i] = select(0.0, sum, counted >= params.least);
}

// The population variance.
@compute @workgroup_size(WORKGROUP)
fn variance(place: Place) {
    let i = element(place);
    if i >= params.count {
        return;
    }
    var sum = 0.0;
    for (var t = 0u; t < params.tasks; t++) {
        sum += value(i, t);
    }
    let mean = sum / f32(params.tasks);
    var squares = 0.0;
    for (var t = 0u; t < params.tasks; t++) {
        let distance = value(i, t) - mean;
        squares += distance * distance;
    }
    out[params.out_offset + i] = squares / f32(params.tasks);
}

// x clamp(number / max(|x|, 1e-6), 0, 1), of one task.
@compute @workgroup_size(WORKGROUP)
fn approach(place: Place) {
    let i = element(place);
    if i >= params.count {
        return;
    }
    let own = value(i, 0u);
    out[params.out_offset + i] = own * clamp(params.number / max(abs(own), 1e-6), 0.0, 1.0);
}
