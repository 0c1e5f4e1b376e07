// How a tiled product reads lines of f32 operands whose offsets, strides and lengths are multiples of four: by fours, which
// addresses count.

const UNIT: u32 = 4;

@group(0) @binding(1) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<u32>>;

// The bits of the four numbers at `at`, or at `last` if they are beyond it.
fn line_of_a(at: u32, last: u32) -> vec4<u32> {
    return a[min(at, last)];
}

fn line_of_b(at: u32, last: u32) -> vec4<u32> {
    return b[min(at, last)];
}

fn numbers(line: vec4<u32>, at: u32, format: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(line);
}
