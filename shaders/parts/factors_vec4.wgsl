// The factors of four columns.
fn factors(at: u32, stride: u32) -> Elements {
    return vec4(s[at], s[at + stride], s[at + 2u * stride], s[at + 3u * stride]);
}
