// How a product reads its operands where all offsets, strides and lengths are multiples of four numbers: four at a time, in
// one load of 16 bytes, or of the half of it that 16-bit numbers fill. Addresses count numbers.

const F32: u32 = 0;
const F16: u32 = 1;
const BF16: u32 = 2;

override FORMAT_A: u32 = F32;
override FORMAT_B: u32 = F32;

@group(0) @binding(1) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<u32>>;

// The f32 of a pair of float16, exactly; subnormals too, which `unpack2x16float` may flush.
fn widen_f16(bits: vec2<u32>) -> vec2<f32> {
    let magnitude = bits & vec2(0x7fffu);
    // infinity and NaN have the largest exponent of either format
    let exponent = select(vec2(112u << 23u), vec2(224u << 23u), magnitude >= vec2(0x7c00u));
    let normal = bitcast<vec2<f32>>((magnitude << vec2(13u)) + exponent);
    let value = select(normal, vec2<f32>(magnitude) * 0x1p-24, magnitude < vec2(0x400u));
    return select(value, -value, (bits & vec2(0x8000u)) != vec2(0u));
}

fn widen(words: vec2<u32>, format: u32) -> vec4<f32> {
    if format == BF16 {
        let low = bitcast<vec2<f32>>(words << vec2(16u));
        let high = bitcast<vec2<f32>>(words & vec2(0xffff0000u));
        return vec4(low.x, high.x, low.y, high.y);
    }
    let low = widen_f16(words);
    let high = widen_f16(words >> vec2(16u));
    return vec4(low.x, high.x, low.y, high.y);
}

// Four numbers that follow each other, or zeros if there are none: `count` is 0 or 4 here.
fn load_four_a(at: u32, count: u32) -> vec4<f32> {
    if count == 0u {
        return vec4(0.0);
    }
    if FORMAT_A == F32 {
        return bitcast<vec4<f32>>(a[at / 4u]);
    }
    let words = a[at / 8u];
    return widen(select(words.xy, words.zw, (at & 4u) != 0u), FORMAT_A);
}

fn load_four_b(at: u32, count: u32) -> vec4<f32> {
    if count == 0u {
        return vec4(0.0);
    }
    if FORMAT_B == F32 {
        return bitcast<vec4<f32>>(b[at / 4u]);
    }
    let words = b[at / 8u];
    return widen(select(words.xy, words.zw, (at & 4u) != 0u), FORMAT_B);
}
