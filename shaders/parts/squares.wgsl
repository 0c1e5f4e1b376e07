// A sum of squares whose root neither overflows nor vanishes where f32 has the root (Blue, ACM TOMS 1978): squares of small and
// of large numbers are kept apart, scaled by powers of two.

struct Squares {
    small: Elements, // times 2^124
    middle: Elements,
    large: Elements, // times 2^-124
}

const SMALL = 9.094947017729282e-13; // 2^-40
const LARGE = 1.099511627776e12; // 2^40
const UP = 4.611686018427388e18; // 2^62
const DOWN = 2.168404344971009e-19; // 2^-62

const NO_SQUARES = Squares(Elements(0.0), Elements(0.0), Elements(0.0));

fn with_square(sums: Squares, value: Elements) -> Squares {
    let size = abs(value);
    let is_small = size < Elements(SMALL);
    let is_large = size > Elements(LARGE);
    let small = select(Elements(0.0), value * UP, is_small);
    let middle = select(value, Elements(0.0), is_small | is_large);
    let large = select(Elements(0.0), value * DOWN, is_large);
    return Squares(sums.small + small * small, sums.middle + middle * middle, sums.large + large * large);
}

fn root(sums: Squares) -> Elements {
    let large = sqrt(sums.large + sums.middle * DOWN * DOWN) * UP;
    let middle = sqrt(sums.middle + sums.small * DOWN * DOWN);
    let small = sqrt(sums.small) * DOWN;
    let of_others = select(middle, small, sums.middle == Elements(0.0));
    return select(of_others, large, sums.large > Elements(0.0));
}

fn sum_of(sums: Squares) -> Elements {
    return sums.large * UP * UP + sums.middle + sums.small * DOWN * DOWN;
}
