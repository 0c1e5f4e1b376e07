// A sum of squares whose root neither overflows nor vanishes where f32 has the root (Blue, ACM TOMS 1978): squares of small and
// of large numbers are kept apart, scaled by powers of two.

struct Squares {
    small: f32, // times 2^124
    middle: f32,
    large: f32, // times 2^-124
}

const SMALL = 9.094947017729282e-13; // 2^-40
const LARGE = 1.099511627776e12; // 2^40
const UP = 4.611686018427388e18; // 2^62
const DOWN = 2.168404344971009e-19; // 2^-62

fn with_square(sums: Squares, value: f32) -> Squares {
    let size = abs(value);
    let is_small = size < SMALL;
    let is_large = size > LARGE;
    let small = select(0.0, value * UP, is_small);
    let middle = select(value, 0.0, is_small || is_large);
    let large = select(0.0, value * DOWN, is_large);
    return Squares(sums.small + small * small, sums.middle + middle * middle, sums.large + large * large);
}

fn root(sums: Squares) -> f32 {
    if sums.large > 0.0 {
        return sqrt(sums.large + sums.middle * DOWN * DOWN) * UP;
    }
    if sums.middle == 0.0 {
        return sqrt(sums.small) * DOWN;
    }
    return sqrt(sums.middle + sums.small * DOWN * DOWN);
}

fn sum_of(sums: Squares) -> f32 {
    return sums.large * UP * UP + sums.middle + sums.small * DOWN * DOWN;
}
