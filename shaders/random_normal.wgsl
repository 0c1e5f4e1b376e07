// Standard normals from a counter: Threefry, then the sum of twelve uniform numbers of 16 bits (Irwin-Hall). Integers up to the
// last, exact step, so that every device makes the same bits.

struct Params {
    count: u32,
    offset: u32,
    first: u32, // index of the first element within its tensor
    stream: u32,
    key_low: u32,
    key_high: u32,
}

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> dst: array<f32>;

//# include parts/threefry.wgsl

fn sum_of_halves(x: vec2<u32>) -> u32 {
    return (x.x & 0xffffu) + (x.x >> 16u) + (x.y & 0xffffu) + (x.y >> 16u);
}

@compute @workgroup_size(WORKGROUP)
fn random_normal(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + local;
    if i >= params.count {
        return;
    }
    let key = vec2(params.key_low, params.key_high);
    var sum = 0u;
    for (var j = 0u; j < 3u; j++) {
        sum += sum_of_halves(threefry(key, vec2(params.first + i, 4u * params.stream + j)));
    }
    dst[params.offset + i] = f32(i32(sum) - 393210) * 0x1p-16;
}
