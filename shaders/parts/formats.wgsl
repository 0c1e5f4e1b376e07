// The numbers of a product's operands: f32, or float16 and bfloat16, two to a 32-bit word.

const F32: u32 = 0;
const F16: u32 = 1;
const BF16: u32 = 2;

override FORMAT_A: u32 = F32;
override FORMAT_B: u32 = F32;

// The f32 of a float16, exactly; subnormals too, which `unpack2x16float` may flush.
fn widen_f16(bits: u32) -> f32 {
    let magnitude = bits & 0x7fffu;
    // infinity and NaN have the largest exponent of either format
    let exponent = select(112u << 23u, 224u << 23u, magnitude >= 0x7c00u);
    let normal = bitcast<f32>((magnitude << 13u) + exponent);
    let value = select(normal, f32(magnitude) * 0x1p-24, magnitude < 0x400u);
    return select(value, -value, (bits & 0x8000u) != 0u);
}

fn widen(word: u32, at: u32, format: u32) -> f32 {
    let odd = (at & 1u) == 1u;
    if format == BF16 {
        return bitcast<f32>(select(word << 16u, word & 0xffff0000u, odd));
    }
    return widen_f16(select(word, word >> 16u, odd));
}

// The f32 of a pair of float16, exactly; subnormals too, which `unpack2x16float` may flush.
fn widen_f16_pair(bits: vec2<u32>) -> vec2<f32> {
    let magnitude = bits & vec2(0x7fffu);
    // infinity and NaN have the largest exponent of either format
    let exponent = select(vec2(112u << 23u), vec2(224u << 23u), magnitude >= vec2(0x7c00u));
    let normal = bitcast<vec2<f32>>((magnitude << vec2(13u)) + exponent);
    let value = select(normal, vec2<f32>(magnitude) * 0x1p-24, magnitude < vec2(0x400u));
    return select(value, -value, (bits & vec2(0x8000u)) != vec2(0u));
}

// The four numbers of 16 bits in two words.
fn widen_fours(words: vec2<u32>, format: u32) -> vec4<f32> {
    if format == BF16 {
        let low = bitcast<vec2<f32>>(words << vec2(16u));
        let high = bitcast<vec2<f32>>(words & vec2(0xffff0000u));
        return vec4(low.x, high.x, low.y, high.y);
    }
    let low = widen_f16_pair(words);
    let high = widen_f16_pair(words >> vec2(16u));
    return vec4(low.x, high.x, low.y, high.y);
}
