// Rounds f32 to the numbers of a checkpoint, to nearest, ties to even. A thread makes one 32-bit word: one f32, or two
// 16-bit numbers. Everything is integer arithmetic: a driver that flushes subnormals, or assumes that there is no NaN,
// gives the same bits.

struct Params {
    count: u32,
    src_offset: u32, // in numbers
    dst_offset: u32, // in words
}

const F32: u32 = 0;
const F16: u32 = 1;
const BF16: u32 = 2;

override WORKGROUP: u32 = 256;
override FORMAT: u32 = F16;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<u32>;
@group(0) @binding(2) var<storage, read_write> dst: array<u32>;

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

@compute @workgroup_size(WORKGROUP)
fn pack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let word = (group.y * groups.x + group.x) * WORKGROUP + local;
    let at = params.dst_offset + word;
    if FORMAT == F32 {
        if word < params.count {
            dst[at] = src[params.src_offset + word];
        }
        return;
    }
    if 2u * word >= params.count {
        return;
    }
    let first = params.src_offset + 2u * word;
    let low = narrow(src[first]);
    if 2u * word + 1u < params.count {
        dst[at] = low | (narrow(src[first + 1u]) << 16u);
    } else {
        dst[at] = low | (dst[at] & 0xffff0000u); // the other half is not ours
    }
}
