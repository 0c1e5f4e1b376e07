// Standard normals from a counter: Threefry-2x32 with 20 rounds (Salmon et al., 2011), then the sum of twelve uniform
// numbers of 16 bits (Irwin-Hall). Integers up to the last, exact step, so that every device makes the same bits.

struct Params {
    count: u32,
    offset: u32,
    first: u32, // index of the first element within its tensor
    stream: u32,
    key_low: u32,
    key_high: u32,
}

override WORKGROUP: u32 = 256;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> dst: array<f32>;

fn round(x: vec2<u32>, rotation: u32) -> vec2<u32> {
    let sum = x.x + x.y;
    return vec2(sum, ((x.y << rotation) | (x.y >> (32u - rotation))) ^ sum);
}

fn four_rounds(x: vec2<u32>, rotations: vec4<u32>) -> vec2<u32> {
    return round(round(round(round(x, rotations.x), rotations.y), rotations.z), rotations.w);
}

fn threefry(key: vec2<u32>, counter: vec2<u32>) -> vec2<u32> {
    let parity = 0x1bd11bdau ^ key.x ^ key.y;
    let even = vec4(13u, 15u, 26u, 6u);
    let odd = vec4(17u, 29u, 16u, 24u);
    var x = counter + key;
    x = four_rounds(x, even) + vec2(key.y, parity + 1u);
    x = four_rounds(x, odd) + vec2(parity, key.x + 2u);
    x = four_rounds(x, even) + vec2(key.x, key.y + 3u);
    x = four_rounds(x, odd) + vec2(key.y, parity + 4u);
    return four_rounds(x, even) + vec2(parity, key.x + 5u);
}

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
