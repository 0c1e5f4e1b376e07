// How many numbers have each value of some bits of their magnitude, or lie in each part of the row: what a selection of the
// k largest asks. Counts are integers, so that their order does not matter.

struct Params {
    count: u32,
    x_offset: u32,
    first: u32, // place of the first number in its row
    value: u32,
    shift: u32,
    out_offset: u32,
}

const HIGH: u32 = 0; // the upper 15 bits of the magnitude
const LOW: u32 = 1; // the lower 16, of numbers whose upper bits are `value`
const PLACES: u32 = 2; // the place, shifted, of numbers whose magnitude is `value`

const WORKGROUP: u32 = 256;
override KEY: u32 = HIGH;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> counts: array<atomic<u32>>;

@compute @workgroup_size(WORKGROUP)
fn histogram(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i >= params.count {
        return;
    }
    let magnitude = x[params.x_offset + i] & 0x7fffffffu;
    var key = magnitude >> 16u;
    if KEY == LOW {
        if key != params.value {
            return;
        }
        key = magnitude & 0xffffu;
    }
    if KEY == PLACES {
        if magnitude != params.value {
            return;
        }
        key = (params.first + i) >> params.shift;
    }
    atomicAdd(&counts[params.out_offset + key], 1u);
}
