// The rows of attention scores become weights: exp(s - max) / sum over the keys that the row's query sees, 0 at the others.
// A workgroup takes one row of one matrix.

//# include parts/elements_{scalar,vec4,positions=scalar}.wgsl
//# include parts/within_{scalar,vec4,positions=scalar}.wgsl
//# include parts/positions_{none,vec4=none,positions=relative}.wgsl

struct Params {
    rows: u32,
    cols: u32, // numbers, unlike the strides
    groups: u32, // batch * rows
    offset: u32,
    row_stride: u32,
    batch_stride: u32,
    query: u32, // position of the first row's query in its sample
    key: u32, // position of the first column's key
    window: u32, // most keys seen by a query in one direction; 0 for all
    cap: f32, // of the scores
    positions_offset: u32, // what the score of the first query and the first key gets
    positions_stride: u32,
}

override WORKGROUP: u32 = 64; // a power of two, at most 256
override CAUSAL: bool = false;
override CAPPED: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scores: array<Elements>;

var<workgroup> partial: array<f32, 256>;

fn score(at: u32, place: u32, j: u32) -> Elements {
    var value = scores[at + j];
    if CAPPED {
        // beyond 15 the tangent is 1, and some devices overflow
        value = params.cap * tanh(clamp(value / params.cap, Elements(-15.0), Elements(15.0)));
    }
    return value + position(place, j);
}

@compute @workgroup_size(WORKGROUP)
fn softmax(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = group_id.y * groups.x + group_id.x;
    if group >= params.groups {
        return;
    }
    let row = group % params.rows;
    let at = params.offset + group / params.rows * params.batch_stride + row * params.row_stride;
    let place = params.positions_offset + group / params.rows * params.positions_stride - row;

    var first = 0u;
    var end = params.cols;
    let before = params.query + row + 1u; // keys up to the query's own
    if params.window > 0u {
        let oldest = before - min(before, params.window);
        first = oldest - min(oldest, params.key);
    }
    if CAUSAL || params.window > 0u {
        let after = select(before + params.window - 1u, before, CAUSAL);
        end = min(end, after - min(after, params.key));
    }

    // what holds any key that is seen
    let begin = min(first, params.cols) / NUMBERS;
    let stop = (end + NUMBERS - 1u) / NUMBERS;

    var most = Elements(-3.4e38);
    for (var j = begin + local; j < stop; j += WORKGROUP) {
        most = max(most, select(Elements(-3.4e38), score(at, place, j), seen(j, first, end)));
    }
    partial[local] = largest_within(most);
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half {
            partial[local] = max(partial[local], partial[local + half]);
        }
    }
    workgroupBarrier();
    let largest = partial[0];
    workgroupBarrier();

    var sum = Elements(0.0);
    for (var j = begin + local; j < stop; j += WORKGROUP) {
        let weight = select(Elements(0.0), exp(score(at, place, j) - largest), seen(j, first, end));
        scores[at + j] = weight;
        sum += weight;
    }
    partial[local] = sum_within(sum);
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half {
            partial[local] += partial[local + half];
        }
    }
    workgroupBarrier();
    let scale = 1.0 / partial[0];
    for (var j = local; j < begin; j += WORKGROUP) {
        scores[at + j] = Elements(0.0);
    }
    for (var j = begin + local; j < stop; j += WORKGROUP) {
        scores[at + j] *= scale;
    }
    for (var j = stop + local; j < params.cols / NUMBERS; j += WORKGROUP) {
        scores[at + j] = Elements(0.0);
    }
}
