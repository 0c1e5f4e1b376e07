//! How far a block of subspace iteration has come, by the lengths of its rows, and what it needs next.

use super::NULL_EIGENVALUE;

/// What a block is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The matrix, formed in f32, whose rounding is that of its largest eigenvalue.
    Gram,
    /// The factor and its transpose, one after the other: rounding is that of the largest singular value.
    Factor,
}

/// What the rounding of a Gram matrix leaves of the tangents of [`Standing::error`], times the ratio of the largest eigenvalue to
/// the last wanted one: measured 4e-9 to 6e-9 for orders 384 to 1600.
const GRAM_NOISE: f64 = 5e-9;

/// The same for products with the factor, times the root of that ratio.
const FACTOR_NOISE: f64 = 1e-7;

/// Tangents past which rows are not yet in the order of eigenvalues, so that neither noise nor a filter can be told.
const UNSETTLED: f64 = 0.3;

/// The ratio of the largest eigenvalue to the last wanted one past which rounding of the first, 2^-24, is a tenth of the second.
const STEEP: f64 = 1e6;

/// Power steps between two looks, at most.
pub(super) const MOST_STEPS: usize = 8;

/// How much more a filter may enlarge the leading direction than the last wanted one: rows, which are orthogonal to 2^-24, are kept
/// apart from the leading one.
const LARGEST_AMPLIFICATION: f64 = 1e7;

/// How the wanted directions of one member of a batch stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Which it is.
    pub member: usize,
    /// Root mean square, over the wanted directions, of the tangents between what a product makes of them and the block.
    error: f64,
    /// The largest eigenvalue.
    most: f64,
    /// The last wanted ones.
    wanted: f64,
    /// The last of the block, which bounds what is not wanted.
    pub least: f64,
    /// Whether what is found is mapped by the factor once more at the end, which is half a step.
    mapped: bool,
}

/// The lengths of rows of a block `Q` of one member.
pub(super) struct Lengths<'a> {
    /// Of `Q A`.
    pub product: &'a [f32],
    /// Of what of that lies outside of the block.
    pub outside: &'a [f32],
    /// Of `Q` times the factor, if the product went by that.
    pub halfway: Option<&'a [f32]>,
}

impl Lengths<'_> {
    /// The Rayleigh quotient of a row, about.
    fn value(&self, j: usize) -> f64 {
        self.halfway.map_or_else(|| f64::from(self.product[j]), |z| f64::from(z[j]).powi(2))
    }
}

impl Standing {
    /// Rows come in about the order of eigenvalues: `Q` was made orthonormal one after the other.
    pub fn new(member: usize, wanted: usize, lengths: &Lengths<'_>, mapped: bool) -> Self {
        let rows = lengths.product.len();
        let most = (0..rows).map(|j| lengths.value(j)).fold(0.0, f64::max);
        let kept: Vec<usize> = (0..wanted).filter(|&j| lengths.value(j) > NULL_EIGENVALUE * most).collect();
        let squares = kept.iter().map(|&j| (f64::from(lengths.outside[j]) / lengths.value(j)).powi(2));
        let error = (squares.sum::<f64>() / kept.len().max(1) as f64).sqrt();
        // means over the last tenth, because neighbours are not in order yet
        let last_of = |end: usize| {
            let tenth = (end * 9 / 10).min(end.saturating_sub(1))..end;
            let count = tenth.len().max(1) as f64;
            tenth.map(|j| lengths.value(j)).sum::<f64>() / count
        };
        Standing { member, error, most, wanted: last_of(kept.len()), least: last_of(rows), mapped }
    }

    /// Whether the step under way brings it to the tolerance, or as near as f32 comes. What is not finite is for those to report
    /// who meet it next.
    pub fn accepted(&self, tolerance: f64, by: By, has_factor: bool) -> bool {
        let floor = match by {
            By::Gram if has_factor => 0.0,
            By::Gram => 2.0 * GRAM_NOISE * self.spread(),
            By::Factor => FACTOR_NOISE * self.spread().sqrt(),
        };
        (self.error * self.left()).partial_cmp(&tolerance.max(floor)) != Some(std::cmp::Ordering::Greater)
    }

    /// Whether the last wanted eigenvalues are within what a solver in f32 errs by.
    pub fn is_steep(&self) -> bool {
        self.spread() > STEEP
    }

    /// The largest eigenvalue over the last wanted one.
    fn spread(&self) -> f64 {
        self.most / self.wanted.max(f64::MIN_POSITIVE)
    }

    /// Whether no product with the Gram matrix will reach the tolerance.
    pub fn needs_factor(&self, tolerance: f64) -> bool {
        let left = if self.mapped { self.rate().sqrt() } else { 1.0 };
        self.error < UNSETTLED && GRAM_NOISE * self.spread() * left > 3.0 * tolerance
    }

    /// The share of the error that a power step leaves.
    fn rate(&self) -> f64 {
        (self.least / self.wanted).clamp(1e-3, 0.9)
    }

    /// The share that is left when what the block holds is read off.
    fn left(&self) -> f64 {
        self.rate() * if self.mapped { self.rate().sqrt() } else { 1.0 }
    }

    /// Power steps until then.
    pub fn power_steps(&self, tolerance: f64) -> usize {
        let steps = (tolerance / (self.error.min(1.0) * self.left())).ln() / self.rate().ln();
        (steps.ceil() as usize).clamp(1, MOST_STEPS)
    }

    /// The degree of a filter that does as much: `T_m(2 / rate - 1)` is how it enlarges the last wanted direction over what is
    /// not wanted. None where rows are not in order, or the block reaches into what is wanted.
    pub fn filter(&self, tolerance: f64) -> Option<usize> {
        if self.error > UNSETTLED || self.least >= self.wanted {
            return None;
        }
        let needed = (self.error * self.left() / tolerance).max(1.0);
        Some(((needed.acosh() / (2.0 / self.rate() - 1.0).acosh()).ceil() as usize).max(1))
    }

    /// The highest degree that f32 bears.
    pub fn highest_degree(&self) -> usize {
        let growth = |value: f64| (2.0 * value / self.least - 1.0).max(1.0).acosh();
        let a_degree = (growth(self.most) - growth(self.wanted)).max(f64::EPSILON);
        (LARGEST_AMPLIFICATION.ln() / a_degree) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of 12 rows, 8 of them wanted, whose eigenvalues fall by a factor each, with tangents of `error`.
    fn standing(factor: f32, error: f32) -> Standing {
        let product: Vec<f32> = (0..12).map(|j| factor.powi(j)).collect();
        let outside: Vec<f32> = product.iter().map(|value| error * value).collect();
        Standing::new(0, 8, &Lengths { product: &product, outside: &outside, halfway: None }, false)
    }

    #[test]
    fn the_steps_that_are_asked_for_reach_the_tolerance() {
        for (factor, error) in [(0.9, 0.2), (0.5, 0.02), (0.7, 1e-3)] {
            let standing = standing(factor, error);
            let steps = standing.power_steps(1e-4);
            let after = f64::from(error) * standing.left() * standing.rate().powi(steps as i32);
            assert!(steps == MOST_STEPS || after <= 1.01e-4, "{factor}: {after:e} after {steps}");
            let degree = standing.filter(1e-4).unwrap();
            let growth = (degree as f64 * (2.0 / standing.rate() - 1.0).acosh()).cosh();
            assert!(f64::from(error) * standing.left() / growth <= 1.01e-4, "{factor}: degree {degree}");
        }
    }

    #[test]
    fn null_directions_do_not_count() {
        let product = [1.0, 0.5, 1e-12, 1e-12];
        let outside = [1e-6, 1e-6, 1e-12, 1e-12];
        let standing =
            Standing::new(3, 3, &Lengths { product: &product, outside: &outside, halfway: None }, true);
        assert!(standing.accepted(1e-4, By::Gram, true));
    }

    #[test]
    fn what_a_gram_matrix_cannot_tell_is_left_to_the_factor() {
        // eigenvalues down to 5e-8 of the largest
        assert!(standing(0.09, 1e-2).needs_factor(1e-4));
        assert!(!standing(0.5, 1e-2).needs_factor(1e-4));
        assert!(!standing(0.09, 0.9).needs_factor(1e-4), "nothing is known of rows that are not in order");
    }

    #[test]
    fn filters_of_the_highest_degree_keep_to_the_cap() {
        for factor in [0.95, 0.8, 0.5] {
            let standing = standing(factor, 1e-2);
            let growth =
                |value: f64, m: usize| (m as f64 * (2.0 * value / standing.least - 1.0).acosh()).cosh();
            let m = standing.highest_degree();
            let amplification = |m| growth(standing.most, m) / growth(standing.wanted, m);
            assert!(amplification(m) <= 2.0 * LARGEST_AMPLIFICATION, "{factor}: {m}");
        }
    }
}
