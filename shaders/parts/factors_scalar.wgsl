fn factors(at: u32, stride: u32) -> Elements {
    return s[at];
}
