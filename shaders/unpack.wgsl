// Widens raw little-endian numbers to f32, exactly. Bits are moved as integers, so that no driver flushes a subnormal or
// changes a NaN.

struct Params {
    count: u32,
    src_offset: u32, // in numbers
    dst_offset: u32, // in numbers
}

const F32: u32 = 0;
const F16: u32 = 1;
const BF16: u32 = 2;

const WORKGROUP: u32 = 256;
override FORMAT: u32 = F16;

@group(0) @binding(0) var<uniform> params: Params;
fn f16_to_f32(half: u32) -> u32 {
    let sign = (half & 0x8000u) << 16u;
    let magnitude = half & 0x7fffu;
    if magnitude >= 0x7c00u {
        return sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13u); // infinity, NaN
    }
    if magnitude >= 0x400u {
        return sign | ((magnitude << 13u) + (112u << 23u));
    }
    if magnitude == 0u {
        return sign;
    }
    // A subnormal: its leading one becomes the implicit one of an f32.
    let shift = countLeadingZeros(magnitude) - 21u;
    return sign | ((113u - shift) << 23u) | (((magnitude << shift) & 0x3ffu) << 13u);
}

fn widen(half: u32) -> u32 {
    if FORMAT == BF16 {
        return half << 16u;
    }
    return f16_to_f32(half);
}

//# include parts/unpack_{scalar,vec4}.wgsl
