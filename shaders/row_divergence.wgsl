// KL(softmax(b + d) || softmax(b)) of every row, with 1e-8 added to both. The two are close where a model was fine-tuned, so that
// it is summed as (q + e) h((p - q) / (q + e)) with h(r) = (1 + r) log(1 + r) - r, of which no term is negative.

struct Params {
    rows: u32,
    cols: u32,
    base_offset: u32,
    delta_offset: u32,
    out_offset: u32,
}

const ADDED: f32 = 1e-8;

const WORKGROUP: u32 = 256; // a power of two, at most 256

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> base: array<f32>;
@group(0) @binding(2) var<storage, read> delta: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

var<workgroup> partial: array<f32, WORKGROUP>;

fn sum_over(value: f32, local: u32) -> f32 {
    workgroupBarrier();
    partial[local] = value;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half {
            partial[local] += partial[local + half];
        }
    }
    workgroupBarrier();
    return partial[0];
}

fn largest_over(value: f32, local: u32) -> f32 {
    workgroupBarrier();
    partial[local] = value;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half {
            partial[local] = max(partial[local], partial[local + half]);
        }
    }
    workgroupBarrier();
    return partial[0];
}

// exp(x) - 1
fn less_one(x: f32) -> f32 {
    if abs(x) < 0.1 {
        return x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0 * (1.0 + x / 6.0)))));
    }
    return exp(x) - 1.0;
}

// log(1 + x)
fn log_of_more(x: f32) -> f32 {
    if abs(x) < 0.02 {
        return x * (1.0 - x * (0.5 - x * (1.0 / 3.0 - x * (0.25 - x * 0.2))));
    }
    return log(1.0 + x);
}

// (1 + r) log(1 + r) - r
fn excess(r: f32) -> f32 {
    if abs(r) < 0.02 {
        return r * r * (0.5 - r * (1.0 / 6.0 - r * (1.0 / 12.0 - r * 0.05)));
    }
    return (1.0 + r) * log(max(1.0 + r, 1e-30)) - r;
}

@compute @workgroup_size(WORKGROUP)
fn row_divergence(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let b = params.base_offset + row * params.cols;
    let d = params.delta_offset + row * params.cols;
    var most = -3.4e38;
    for (var j = local; j < params.cols; j += WORKGROUP) {
        most = max(most, base[b + j]);
    }
    most = largest_over(most, local);
    var total = 0.0;
    for (var j = local; j < params.cols; j += WORKGROUP) {
        total += exp(base[b + j] - most);
    }
    total = sum_over(total, local);
    // log(p / q) = d - log(sum q exp(d)), taken apart from the largest d so that no exponential overflows
    var highest = -3.4e38;
    for (var j = local; j < params.cols; j += WORKGROUP) {
        highest = max(highest, delta[d + j]);
    }
    highest = largest_over(highest, local);
    var rise = 0.0;
    for (var j = local; j < params.cols; j += WORKGROUP) {
        rise += exp(base[b + j] - most) / total * less_one(delta[d + j] - highest);
    }
    let mean = highest + log_of_more(max(sum_over(rise, local), -0.99999994));
    var sum = 0.0;
    for (var j = local; j < params.cols; j += WORKGROUP) {
        let q = exp(base[b + j] - most) / total;
        let ratio = q * less_one(delta[d + j] - mean) / (q + ADDED);
        sum += (q + ADDED) * excess(ratio);
    }
    sum = sum_over(sum, local);
    if local == 0u {
        out[params.out_offset + row] = sum;
    }
}
