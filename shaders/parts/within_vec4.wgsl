// What is in a thread's Elements: four numbers.
const NUMBERS: u32 = 4;
alias Seen = vec4<bool>;

fn sum_within(x: Elements) -> f32 {
    return (x.x + x.y) + (x.z + x.w);
}

fn largest_within(x: Elements) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

// Which numbers of the j-th Elements of a row lie in a range.
fn seen(j: u32, first: u32, end: u32) -> Seen {
    let at = 4u * j + vec4(0u, 1u, 2u, 3u);
    return (at >= vec4(first)) & (at < vec4(end));
}
