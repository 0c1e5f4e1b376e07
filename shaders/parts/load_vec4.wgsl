// How a product reads its operands where all offsets, strides and lengths are multiples of four numbers: four at a time, in
// one load of 16 bytes, or of the half of it that 16-bit numbers fill. Addresses count numbers.

@group(0) @binding(1) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<u32>>;

// Four numbers that follow each other, or zeros if there are none: `count` is 0 or 4 here.
fn load_four_a(at: u32, count: u32) -> vec4<f32> {
    if count == 0u {
        return vec4(0.0);
    }
    if FORMAT_A == F32 {
        return bitcast<vec4<f32>>(a[at / 4u]);
    }
    let words = a[at / 8u];
    return widen_fours(select(words.xy, words.zw, (at & 4u) != 0u), FORMAT_A);
}

fn load_four_b(at: u32, count: u32) -> vec4<f32> {
    if count == 0u {
        return vec4(0.0);
    }
    if FORMAT_B == F32 {
        return bitcast<vec4<f32>>(b[at / 4u]);
    }
    let words = b[at / 8u];
    return widen_fours(select(words.xy, words.zw, (at & 4u) != 0u), FORMAT_B);
}
