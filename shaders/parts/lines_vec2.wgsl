// How a tiled product reads lines of operands of which one at least has numbers of 16 bits, where offsets, strides and lengths
// are multiples of four: by fours, which addresses count. Four such numbers are a vec2 of words, which no 16-byte load would
// have to be cut for before the next slab is needed; four f32 are two.

const UNIT: u32 = 4;

@group(0) @binding(1) var<storage, read> a: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> b: array<vec2<u32>>;

// The bits of the four numbers at `at`, or at `last` if they are beyond it; of 16-bit ones in the first two words.
fn line_of_a(at: u32, last: u32) -> vec4<u32> {
    let four = min(at, last);
    if FORMAT_A == F32 {
        return vec4(a[2u * four], a[2u * four + 1u]);
    }
    return vec4(a[four], 0u, 0u);
}

fn line_of_b(at: u32, last: u32) -> vec4<u32> {
    let four = min(at, last);
    if FORMAT_B == F32 {
        return vec4(b[2u * four], b[2u * four + 1u]);
    }
    return vec4(b[four], 0u, 0u);
}

fn numbers(line: vec4<u32>, at: u32, format: u32) -> vec4<f32> {
    if format == F32 {
        return bitcast<vec4<f32>>(line);
    }
    return widen_fours(line.xy, format);
}
