// Rounds f32 to the numbers of a checkpoint, to nearest, ties to even. Everything is integer arithmetic: a driver that
// flushes subnormals, or assumes that there is no NaN, gives the same bits.

struct Params {
    count: u32,
    src_offset: u32, // in numbers
    dst_offset: u32, // in 32-bit words
}

const F32: u32 = 0;
const F16: u32 = 1;
const BF16: u32 = 2;

const WORKGROUP: u32 = 256;
override FORMAT: u32 = F16;

@group(0) @binding(0) var<uniform> params: Params;
// `value >> shift`, rounded to nearest, ties to even; `shift` is 1 to 31.
fn shift_right_even(value: u32, shift: u32) -> u32 {
    let kept = value >> shift;
    return (value + ((1u << (shift - 1u)) - 1u) + (kept & 1u)) >> shift;
}

fn f32_to_f16(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return sign | 0x7e00u | ((magnitude >> 13u) & 0x1ffu); // NaN, made quiet
    }
    if magnitude >= 0x477ff000u {
        return sign | 0x7c00u; // 65520 and above round to infinity
    }
    if magnitude >= 0x38800000u {
        return sign | shift_right_even(magnitude - (112u << 23u), 13u);
    }
    if magnitude < 0x33000000u {
        return sign; // below half of the smallest subnormal
    }
    let significand = (magnitude & 0x7fffffu) | 0x800000u;
    return sign | shift_right_even(significand, 126u - (magnitude >> 23u));
}

fn f32_to_bf16(bits: u32) -> u32 {
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return (bits >> 16u) | 0x40u; // NaN, made quiet
    }
    // Done in two halves, for `bits` near the top would wrap a sum of 32 bits.
    let kept = bits >> 16u;
    return kept + (((bits & 0xffffu) + 0x7fffu + (kept & 1u)) >> 16u);
}

fn narrow(bits: u32) -> u32 {
    if FORMAT == BF16 {
        return f32_to_bf16(bits);
    }
    return f32_to_f16(bits);
}

//# include parts/pack_{scalar,vec4}.wgsl
