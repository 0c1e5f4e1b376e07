// How a tiled product reads lines of its operands, wherever they lie: by single numbers, which addresses count.

const UNIT: u32 = 1;

@group(0) @binding(1) var<storage, read> a: array<u32>;
@group(0) @binding(2) var<storage, read> b: array<u32>;

fn four_places(at: u32) -> vec4<u32> {
    return vec4(at, at + 1u, at + 2u, at + 3u);
}

// The words of the four numbers from `at` on, or of the one at `last` for those beyond it.
fn line_of_a(at: u32, last: u32) -> vec4<u32> {
    let places = min(four_places(at), vec4(last));
    let words = select(places / 2u, places, FORMAT_A == F32);
    return vec4(a[words.x], a[words.y], a[words.z], a[words.w]);
}

fn line_of_b(at: u32, last: u32) -> vec4<u32> {
    let places = min(four_places(at), vec4(last));
    let words = select(places / 2u, places, FORMAT_B == F32);
    return vec4(b[words.x], b[words.y], b[words.z], b[words.w]);
}

// The numbers of the line at `at`. Those of 16 bits are taken out of their words only here, when the words are there.
fn numbers(line: vec4<u32>, at: u32, format: u32) -> vec4<f32> {
    if format == F32 {
        return bitcast<vec4<f32>>(line);
    }
    let halves = (line >> (16u * (four_places(at) & vec4(1u)))) & vec4(0xffffu);
    return widen_fours(halves.xz | (halves.yw << vec2(16u)), format);
}
