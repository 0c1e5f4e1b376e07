// How a product reads its operands: one number at a time, wherever they lie. f32, float16 and bfloat16 are stored in 32-bit
// words, two of the 16-bit ones to a word; addresses count numbers.

const F32: u32 = 0;
const F16: u32 = 1;
const BF16: u32 = 2;

override FORMAT_A: u32 = F32;
override FORMAT_B: u32 = F32;

@group(0) @binding(1) var<storage, read> a: array<u32>;
@group(0) @binding(2) var<storage, read> b: array<u32>;

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

fn load_a(at: u32) -> f32 {
    if FORMAT_A == F32 {
        return bitcast<f32>(a[at]);
    }
    return widen(a[at / 2u], at, FORMAT_A);
}

fn load_b(at: u32) -> f32 {
    if FORMAT_B == F32 {
        return bitcast<f32>(b[at]);
    }
    return widen(b[at / 2u], at, FORMAT_B);
}

// Four numbers that follow each other, of which the first `count` exist; zeros for the others.
fn load_four_a(at: u32, count: u32) -> vec4<f32> {
    var four = vec4(0.0);
    if count > 0u {
        four.x = load_a(at);
    }
    if count > 1u {
        four.y = load_a(at + 1u);
    }
    if count > 2u {
        four.z = load_a(at + 2u);
    }
    if count > 3u {
        four.w = load_a(at + 3u);
    }
    return four;
}

fn load_four_b(at: u32, count: u32) -> vec4<f32> {
    var four = vec4(0.0);
    if count > 0u {
        four.x = load_b(at);
    }
    if count > 1u {
        four.y = load_b(at + 1u);
    }
    if count > 2u {
        four.z = load_b(at + 2u);
    }
    if count > 3u {
        four.w = load_b(at + 3u);
    }
    return four;
}
