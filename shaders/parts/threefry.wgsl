// Threefry-2x32 with 20 rounds (Salmon et al., 2011).

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
