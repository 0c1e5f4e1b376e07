// The rows of attention scores become weights: exp(s - max) / sum over the keys that the row's query sees, 0 at the others.
// A workgroup takes one row of one matrix.

//# include parts/elements_{scalar,vec4}.wgsl
//# include parts/within_{scalar,vec4}.wgsl

struct Params {
    rows: u32,
    cols: u32, // numbers, unlike the strides
    groups: u32, // batch * rows
    offset: u32,
    row_stride: u32,
    batch_stride: u32,
    query: u32, // position of the first row's query in its sample
    key: u32, // position of the first column's key
    window: u32, // most keys seen by a causal query; 0 for all
}

override WORKGROUP: u32 = 64; // a power of two, at most 256
override CAUSAL: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scores: array<Elements>;

var<workgroup> partial: array<f32, 256>;

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

    var first = 0u;
    var end = params.cols;
    if CAUSAL {
        let seen = params.query + row + 1u; // keys up to the query's own
        end = min(end, seen - min(seen, params.key));
        if params.window > 0u && seen > params.window {
            let oldest = seen - params.window;
            first = oldest - min(oldest, params.key);
        }
    }

    // what holds any key that is seen
    let begin = min(first, params.cols) / NUMBERS;
    let stop = (end + NUMBERS - 1u) / NUMBERS;

    var most = Elements(-3.4e38);
    for (var j = begin + local; j < stop; j += WORKGROUP) {
        most = max(most, select(Elements(-3.4e38), scores[at + j], seen(j, first, end)));
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
        let weight = select(Elements(0.0), exp(scores[at + j] - largest), seen(j, first, end));
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
