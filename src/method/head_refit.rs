//! Heads refitted without labels: the head that answers on the merged model's features as an expert's head does on the expert's.
//!
//! With the features of all tasks' proxies by the merged model `Fm` and by the expert `Fe` (`N x d` both), the expert's head `H`
//! (`k x d`) and row weights `a` that sum to 1,
//!
//! ```text
//! H' = argmin_X  sum_i a_i |X fm_i - H fe_i|^2 + lam tr(G) |X - H|_F^2        G = Fm^T diag(a) Fm
//!    = H + (S^-1 Fm^T diag(a) (Fe - Fm) H^T)^T                                S = G + lam tr(G) I
//! ```
//!
//! which is ridge regression (A. E. Hoerl, R. W. Kennard, Technometrics 12, 1970) of what the expert's answers differ by, so that
//! `Fe = Fm` gives `H` back. With `B = diag(sqrt a) Fm` and `R = diag(sqrt a) (Fe - Fm) H^T` the same is
//! `B^T (B B^T + lam tr(G) I)^-1 R`, cheaper where there are fewer proxies than features. A head with a bias has the constant 1 as
//! one more feature in `Fm` and `Fe`, and the bias as that column of `H`.
//!
//! All of it is in f64 on the host, on every device: the system has order `min(N, d)`, a few hundred, where the forward passes that
//! give the features cost thousands of times more; and the same features give the same bytes.

use crate::backend::cpu::dense::{product, solve_positive_definite};
use crate::backend::{Error, Result};
use crate::host::all_threads;
use faer::{Mat, MatRef, Scale};

/// The penalty that is used unless another is asked for, in units of the Gram matrix's trace.
pub const LAM: f64 = 1e-3;

/// Proxies of a task below which a head is not refitted: one can cost accuracy.
pub const FEWEST_PROXIES: usize = 4;

/// Proxies of a task that are advised.
pub const ADVISED_PROXIES: usize = 32;

/// What is to become of heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Whether they are refitted.
    pub mode: Mode,
    /// The penalty.
    pub lam: f64,
    /// A head is refitted on its own task's proxies alone: fewer forward passes.
    pub own_only: bool,
}

/// Whether heads are refitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All are.
    Refit,
    /// Those whose agreement with the expert on proxies that were left out rises.
    Auto,
    /// None is.
    Keep,
}

impl Mode {
    /// All of them, by the names that recipes and flags use.
    pub const NAMES: [(&'static str, Mode); 3] =
        [("auto", Mode::Auto), ("refit", Mode::Refit), ("keep", Mode::Keep)];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Refit => "refit",
            Mode::Auto => "auto",
            Mode::Keep => "keep",
        }
    }
}

/// What a refit is made of. Matrices are row-major; cosine heads give features of unit length.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// `Fm`, `N x d`.
    pub merged: &'a [f64],
    /// `Fe`, `N x d`.
    pub expert: &'a [f64],
    /// `a`, `N`: [`row_weights`].
    pub weights: &'a [f64],
    /// `H`, `k x d`.
    pub head: &'a [f64],
    /// `d`
    pub width: usize,
    /// `lam`, above 0.
    pub lam: f64,
}

/// A refitted head, and what it answers where it has not looked.
#[derive(Clone, Debug, PartialEq)]
pub struct Refit {
    /// `H'`, `k x d`.
    pub head: Vec<f64>,
    /// `N x k`: the scores of each proxy on the merged features by the head that is refitted without that proxy.
    pub left_out: Vec<f64>,
}

/// The weights of the proxies of all tasks, task by task, for the head of task `own`: its own share one half, those of each other
/// task equally the other half; all of them where it is alone.
pub fn row_weights(proxies: &[usize], own: usize) -> Vec<f64> {
    let others = proxies.iter().enumerate().filter(|&(s, &n)| s != own && n > 0).count();
    let share = |s: usize| match others {
        0 => 1.0,
        _ if s == own => 0.5,
        others => 0.5 / others as f64,
    };
    let rows = |(s, &n): (usize, &usize)| std::iter::repeat_n(share(s) / n.max(1) as f64, n);
    proxies.iter().enumerate().flat_map(rows).collect()
}

/// The smaller of the two systems that give the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Of order `d`.
    Primal,
    /// Of order `N`.
    Dual,
}

/// Refits a head.
///
/// # Errors
/// A value that is not finite, or sizes that do not fit each other.
pub fn refit(problem: &Problem) -> Result<Refit> {
    let samples = problem.weights.len();
    solve(problem, if samples < problem.width { Form::Dual } else { Form::Primal })
}

fn solve(problem: &Problem, form: Form) -> Result<Refit> {
    let Problem { width: d, weights, .. } = *problem;
    let n = weights.len();
    check(problem, n)?;
    let matrix = |values| MatRef::from_row_major_slice(values, n, d);
    let (fm, fe) = (matrix(problem.merged), matrix(problem.expert));
    let head = MatRef::from_row_major_slice(problem.head, problem.head.len() / d, d);
    let par = all_threads();

    let rows = |x: MatRef<'_, f64>| Mat::from_fn(n, x.ncols(), |i, j| weights[i].sqrt() * x[(i, j)]);
    let b = rows(fm);
    let shift = fe - fm;
    let r = rows(product(shift.as_ref(), head.transpose(), par).as_ref());
    let lam = problem.lam * b.squared_norm_l2();

    // what the answers of proxy i miss where the head was fitted without it, times sqrt(a_i): the residual over 1 - h_ii
    let (change, missed) = match form {
        Form::Dual => {
            let kernel = product(b.as_ref(), b.transpose(), par) + Scale(lam) * Mat::<f64>::identity(n, n);
            let inverse = solve_positive_definite(kernel.as_ref(), Mat::identity(n, n).as_ref())?;
            let y = solve_positive_definite(kernel.as_ref(), r.as_ref())?;
            let missed = Mat::from_fn(n, r.ncols(), |i, c| y[(i, c)] / inverse[(i, i)]);
            (product(b.transpose(), y.as_ref(), par), missed)
        }
        Form::Primal => {
            let s = product(b.transpose(), b.as_ref(), par) + Scale(lam) * Mat::<f64>::identity(d, d);
            let change =
                solve_positive_definite(s.as_ref(), product(b.transpose(), r.as_ref(), par).as_ref())?;
            let hat = solve_positive_definite(s.as_ref(), b.transpose())?;
            let left = |i: usize| 1.0 - (0..d).map(|j| b[(i, j)] * hat[(j, i)]).sum::<f64>();
            let left: Vec<f64> = (0..n).map(left).collect();
            let residual = &r - product(b.as_ref(), change.as_ref(), par);
            (change, Mat::from_fn(n, r.ncols(), |i, c| residual[(i, c)] / left[i]))
        }
    };
    let answers = product(fe, head.transpose(), par);
    let refitted = (0..head.nrows()).flat_map(|c| (0..d).map(move |j| (c, j)));
    let scores = (0..n).flat_map(|i| (0..head.nrows()).map(move |c| (i, c)));
    let refit = Refit {
        head: refitted.map(|(c, j)| head[(c, j)] + change[(j, c)]).collect(),
        left_out: scores.map(|(i, c)| answers[(i, c)] - missed[(i, c)] / weights[i].sqrt()).collect(),
    };
    if refit.head.iter().chain(&refit.left_out).any(|v| !v.is_finite()) {
        return Err(Error::NotFinite("a refitted head"));
    }
    Ok(refit)
}

fn check(problem: &Problem, n: usize) -> Result<()> {
    let Problem { merged, expert, weights, head, width: d, lam } = *problem;
    let fits =
        d > 0 && n > 0 && merged.len() == n * d && expert.len() == n * d && head.len().is_multiple_of(d);
    if !fits || !lam.is_finite() || lam <= 0.0 || weights.iter().any(|&a| a <= 0.0) {
        return Err(Error::Internal("the parts of a head refit do not fit each other".into()));
    }
    let all = [merged, expert, weights, head];
    match all.iter().flat_map(|part| part.iter()).all(|v| v.is_finite()) {
        true => Ok(()),
        false => Err(Error::NotFinite("features or a head")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in -1..1 of no pattern.
    fn numbers(n: usize, seed: f64) -> Vec<f64> {
        (0..n).map(|i| 2.0 * ((i as f64 + seed) * 12.9898).sin().mul_add(43_758.545, 0.0).fract()).collect()
    }

    struct Made {
        merged: Vec<f64>,
        expert: Vec<f64>,
        head: Vec<f64>,
        weights: Vec<f64>,
        width: usize,
    }

    fn made(proxies: &[usize], own: usize, width: usize) -> Made {
        let n = proxies.iter().sum::<usize>() * width;
        let merged = numbers(n, 1.0);
        let expert = merged.iter().zip(numbers(n, 0.3)).map(|(m, x)| m + 0.2 * x).collect();
        Made { merged, expert, head: numbers(3 * width, 7.0), weights: row_weights(proxies, own), width }
    }

    impl Made {
        fn problem(&self) -> Problem<'_> {
            let Made { merged, expert, head, weights, width } = self;
            Problem { merged, expert, weights, head, width: *width, lam: LAM }
        }
    }

    fn distance(x: &[f64], y: &[f64]) -> f64 {
        assert_eq!(x.len(), y.len());
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        norm(&mut x.iter().zip(y).map(|(x, y)| x - y)) / norm(&mut y.iter().copied())
    }

    #[test]
    fn weights_sum_to_one_and_the_own_task_has_half() {
        let weights = row_weights(&[5, 40, 17], 2);
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-14);
        assert!((weights[45..].iter().sum::<f64>() - 0.5).abs() < 1e-14);
        assert!((weights[..5].iter().sum::<f64>() - 0.25).abs() < 1e-14);
        assert_eq!(row_weights(&[4], 0), [0.25; 4]);
    }

    #[test]
    fn a_head_whose_features_have_not_moved_comes_back() {
        for (proxies, width) in [([4, 4], 40), ([30, 9], 12)] {
            let mut made = made(&proxies, 1, width);
            made.expert = made.merged.clone();
            let refit = refit(&made.problem()).unwrap();
            assert!(distance(&refit.head, &made.head) < 1e-12);
        }
    }

    #[test]
    fn primal_and_dual_agree() {
        for (proxies, width) in [([4, 7], 40), ([30, 9], 12), ([8, 8], 16)] {
            let made = made(&proxies, 0, width);
            let [primal, dual] = [Form::Primal, Form::Dual].map(|form| solve(&made.problem(), form).unwrap());
            assert!(distance(&primal.head, &dual.head) < 1e-10);
            assert!(distance(&primal.left_out, &dual.left_out) < 1e-10);
        }
    }

    #[test]
    fn the_order_of_tasks_changes_nothing() {
        let (proxies, width) = ([5, 11, 7], 9);
        let first = made(&proxies, 0, width);
        let turned = |values: &[f64]| [&values[5 * width..], &values[..5 * width]].concat();
        let last = Made {
            merged: turned(&first.merged),
            expert: turned(&first.expert),
            weights: row_weights(&[11, 7, 5], 2),
            head: first.head.clone(),
            width,
        };
        let [first, last] = [first, last].map(|made| refit(&made.problem()).unwrap().head);
        assert!(distance(&first, &last) < 1e-11);
    }

    #[test]
    fn left_out_scores_are_those_of_a_fit_without_the_sample() {
        for (proxies, width) in [([4, 5], 20), ([14, 9], 6)] {
            let made = made(&proxies, 0, width);
            let problem = made.problem();
            let all = refit(&problem).unwrap();
            for i in [0, 3, proxies[0] + 1] {
                let without = |v: &[f64], d: usize| [&v[..i * d], &v[(i + 1) * d..]].concat();
                let (merged, expert) = (without(&made.merged, width), without(&made.expert, width));
                let weights = without(&made.weights, 1);
                // the penalty stays what it is with all of them
                let trace = |merged: &[f64], weights: &[f64]| -> f64 {
                    merged
                        .chunks(width)
                        .zip(weights)
                        .map(|(f, a)| a * f.iter().map(|v| v * v).sum::<f64>())
                        .sum()
                };
                let lam = LAM * trace(&made.merged, &made.weights) / trace(&merged, &weights);
                let fitted =
                    refit(&Problem { merged: &merged, expert: &expert, weights: &weights, lam, ..problem })
                        .unwrap();
                let feature = &made.merged[i * width..(i + 1) * width];
                let scores: Vec<f64> = fitted
                    .head
                    .chunks(width)
                    .map(|row| row.iter().zip(feature).map(|(h, f)| h * f).sum())
                    .collect();
                assert!(distance(&all.left_out[3 * i..3 * i + 3], &scores) < 1e-10, "sample {i}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let mut made = made(&[4, 4], 0, 5);
        made.expert[3] = f64::NAN;
        assert!(matches!(refit(&made.problem()), Err(Error::NotFinite(_))));
    }
}
