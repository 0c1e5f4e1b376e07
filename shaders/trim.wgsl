// Keeps the numbers between two ranks of magnitude, and makes the others zero. A rank is where a cut lies in the order of
// magnitudes, the largest first and among equal ones the first in the row: before the cut are those above `bits`, and those
// of exactly these bits in the places before `places`.

struct Params {
    count: u32,
    x_offset: u32,
    by_offset: u32,
    first: u32, // place of the first number in its row
    keep_bits: u32,
    keep_places: u32,
    drop_bits: u32,
    drop_places: u32,
}

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read> by: array<u32>;

fn is_kept(bits: u32, place: u32) -> bool {
    let magnitude = bits & 0x7fffffffu;
    let before = magnitude > params.keep_bits || (magnitude == params.keep_bits && place < params.keep_places);
    let dropped = magnitude > params.drop_bits || (magnitude == params.drop_bits && place < params.drop_places);
    return before && !dropped;
}

// By the magnitudes of x itself.
@compute @workgroup_size(WORKGROUP)
fn trim(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i < params.count && !is_kept(x[params.x_offset + i], params.first + i) {
        x[params.x_offset + i] = 0u;
    }
}

// By the magnitudes of other numbers.
@compute @workgroup_size(WORKGROUP)
fn trim_by(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i < params.count && !is_kept(by[params.by_offset + i], params.first + i) {
        x[params.x_offset + i] = 0u;
    }
}
