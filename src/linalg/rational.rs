//! Steps of the polar iteration that are rational functions of singular values: `x (a + sum_i w_i / (1 + c_i x^2))`, as partial
//! fractions, of which each is a matrix to invert.

use crate::backend::{Backend, Op, Result, Shape};

/// A step `X <- (a I + sum_i w_i (I + c_i G)^(-1)) X` with `G = X X^T`, or the same from the right with `G = X^T X`.
pub(super) struct Step {
    /// `a`
    pub constant: f64,
    /// `(w_i, c_i)`
    pub fractions: Vec<(f64, f64)>,
}

/// Lower bounds of the singular values before each dynamically weighted Halley step. The first is not that of the matrix,
/// 1e-5, but the least for which f32 can invert `I + c G`, with `c = 8e4`; smaller singular values grow 562-fold all the same, to the
/// second bound.
const BOUNDS: [f64; 2] = [3e-4, 5.6e-3];

/// The singular values after those steps are above this, if they were above 1e-5.
#[cfg(test)]
const LAST_BOUND: f64 = 0.426;

/// How far the last step leaves any of them from 1, at most.
pub(super) const LAST_ERROR: f64 = 5.2e-5;

impl Step {
    /// All of them: singular values from 1e-5 of the largest on come within 5.2e-5 of 1. `6.3 n^3` multiply-adds of a square
    /// matrix, where twelve quintic steps take 24.
    pub fn all() -> [Step; 3] {
        [Step::halley(BOUNDS[0]), Step::halley(BOUNDS[1]), Step::last()]
    }

    /// `x (a + b x^2) / (1 + c x^2)` with the weights that make the least of its values on `[l, 1]` as large as can be
    /// (Nakatsukasa, Bai and Gygi, SIAM J. Matrix Anal. Appl. 2010).
    fn halley(l: f64) -> Step {
        let l2 = l * l;
        let d = (4.0 * (1.0 - l2) / (l2 * l2)).cbrt();
        let root = (1.0 + d).sqrt();
        let a = root + 0.5 * (8.0 - 4.0 * d + 8.0 * (2.0 - l2) / (l2 * root)).sqrt();
        let b = (a - 1.0).powi(2) / 4.0;
        let c = a + b - 1.0;
        Step { constant: b / c, fractions: vec![(a - b / c, c)] }
    }

    /// Zolotarev's function of type (5, 4) on `[0.426, 1]`, scaled so that it is as far above 1 as below (Nakatsukasa and Freund,
    /// SIAM Review 2016, section 4): two inverses of the same Gram matrix in place of a Halley step and a quintic one.
    fn last() -> Step {
        Step {
            constant: 0.293_035_904_722,
            fractions: vec![(6.756_812_920_492, 23.901_958_700_775), (0.960_834_495_056, 1.205_373_595_485)],
        }
    }

    /// `x` after the step; `gram` is that of its short side.
    pub fn apply<B: Backend>(
        &self,
        backend: &B,
        x: &B::Tensor,
        gram: &B::Tensor,
        short_side: Op,
        identity: &B::Tensor,
    ) -> Result<B::Tensor> {
        let mut next = backend.duplicate(x)?;
        let mut factor = self.constant as f32;
        for &(weight, c) in &self.fractions {
            let mut m = backend.duplicate(gram)?;
            backend.axpby(1.0, identity, c as f32, &mut m)?;
            backend.solve(weight as f32, (&m, SMALLEST_PIVOT), short_side, x, factor, &mut next)?;
            factor = 1.0;
        }
        Ok(next)
    }
}

/// Pivots of `I + c G` with unit diagonal are not below `1 / (1 + c)` but by rounding.
const SMALLEST_PIVOT: f32 = f32::EPSILON;

/// `1 x n x n`
pub(super) fn identity<B: Backend>(backend: &B, n: usize) -> Result<B::Tensor> {
    let mut values = vec![0.0; n * n];
    values.iter_mut().step_by(n + 1).for_each(|v| *v = 1.0);
    backend.upload(Shape::matrix(n, n), &values)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Step {
        fn of(&self, x: f64) -> f64 {
            let fractions = self.fractions.iter().map(|(w, c)| w / (1.0 + c * x * x));
            x * (self.constant + fractions.sum::<f64>())
        }
    }

    /// Numbers from `least` to 1, evenly in their logarithm.
    fn sweep(least: f64) -> impl Iterator<Item = f64> {
        (0..=20_000).map(move |i| least.powf(i as f64 / 20_000.0))
    }

    #[test]
    fn halley_steps_bring_what_is_above_1e_5_past_the_last_bound_and_nothing_past_1() {
        let [first, second, _] = Step::all();
        for x in sweep(1e-5) {
            let x = second.of(first.of(x));
            assert!((LAST_BOUND..=1.0 + 1e-12).contains(&x), "{x}");
        }
    }

    #[test]
    fn the_last_step_leaves_no_more_than_its_error_and_that_on_both_sides() {
        let errors: Vec<f64> = sweep(LAST_BOUND).map(|x| Step::last().of(x) - 1.0).collect();
        let (least, most) =
            (errors.iter().copied().fold(0.0, f64::min), errors.iter().copied().fold(0.0, f64::max));
        assert!(most <= LAST_ERROR && least >= -LAST_ERROR, "{least:e} to {most:e}");
        // as small as it can be: the extremes are alike
        assert!((least + most).abs() < 0.01 * most, "{least:e} to {most:e}");
    }

    #[test]
    fn a_bound_of_the_norm_that_was_a_little_too_small_does_no_harm() {
        for x in [1.01, 1.05, 1.1] {
            let x = Step::all().iter().fold(x, |x, step| step.of(x));
            assert!((x - 1.0).abs() < 1e-3, "{x}");
        }
    }
}
