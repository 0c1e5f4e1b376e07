// out[i, :] = (x[i, :] - mean) / sqrt(variance + epsilon) * weight + bias; with RMS the mean is not taken off, the variance
// is the mean square, and there is no bias. A workgroup takes one row; its sums are trees of fixed shape.

//# include parts/elements_{scalar,vec4}.wgsl
//# include parts/within_{scalar,vec4}.wgsl

struct Params {
    rows: u32,
    cols: u32,
    x_offset: u32,
    x_row_stride: u32,
    weight_offset: u32,
    bias_offset: u32,
    out_offset: u32,
    out_row_stride: u32,
    epsilon: f32,
}

override WORKGROUP: u32 = 64; // a power of two, at most 256
override RMS: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elements>;
@group(0) @binding(2) var<storage, read> weight: array<Elements>;
@group(0) @binding(3) var<storage, read> bias: array<Elements>;
@group(0) @binding(4) var<storage, read_write> out: array<Elements>;

var<workgroup> sums: array<f32, 256>;

fn total(value: f32, local: u32) -> f32 {
    workgroupBarrier(); // the sum before has been read by all
    sums[local] = value;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half {
            sums[local] += sums[local + half];
        }
    }
    workgroupBarrier();
    return sums[0];
}

// The numbers at `j` of a row; beyond it, where the last ones are read again, as many of another.
fn of_x(row: u32, j: u32, other: f32) -> Elements {
    return select(Elements(other), x[row + min(j, params.cols - 1u)], j < params.cols);
}

@compute @workgroup_size(WORKGROUP)
fn layer_norm(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = group_id.y * groups.x + group_id.x;
    if row >= params.rows {
        return;
    }
    let from_x = params.x_offset + row * params.x_row_stride;
    let to = params.out_offset + row * params.out_row_stride;
    let n = f32(NUMBERS * params.cols);

    var mean = 0.0;
    if !RMS {
        var sum = Elements(0.0);
        for (var j = local; j < params.cols; j += 2u * WORKGROUP) {
            sum += x[from_x + j] + of_x(from_x, j + WORKGROUP, 0.0);
        }
        mean = total(sum_within(sum), local) / n;
    }
    var squares = Elements(0.0);
    for (var j = local; j < params.cols; j += 2u * WORKGROUP) {
        let first = x[from_x + j] - mean;
        let second = of_x(from_x, j + WORKGROUP, mean) - mean;
        squares += first * first + second * second;
    }
    let scale = 1.0 / sqrt(total(sum_within(squares), local) / n + params.epsilon);
    for (var j = local; j < params.cols; j += WORKGROUP) {
        var value = (x[from_x + j] - mean) * scale * weight[params.weight_offset + j];
        if !RMS {
            value += bias[params.bias_offset + j];
        }
        out[to + j] = value;
    }
}
