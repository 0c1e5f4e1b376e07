// x = 0 where x <= fraction * max x, over all elements of a matrix, in place. A workgroup takes one matrix: it looks for
// the largest element, then clears. NaN is neither small nor the largest, and stays.

struct Params {
    batch: u32,
    count: u32, // elements of a matrix
    offset: u32,
    batch_stride: u32,
    fraction: f32,
}

const WORKGROUP: u32 = 256; // a power of two, at most 256

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

var<workgroup> largest: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn clear_small(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let batch = group_id.y * groups.x + group_id.x;
    if batch >= params.batch {
        return;
    }
    let first = params.offset + batch * params.batch_stride;
    var most = 0.0;
    for (var i = local; i < params.count; i += WORKGROUP) {
        most = max(most, x[first + i]);
    }
    largest[local] = most;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half {
            largest[local] = max(largest[local], largest[local + half]);
        }
    }
    workgroupBarrier();
    let cut = params.fraction * largest[0];
    for (var i = local; i < params.count; i += WORKGROUP) {
        if x[first + i] <= cut {
            x[first + i] = 0.0;
        }
    }
}
