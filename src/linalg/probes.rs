//! What a few random vectors tell of a large matrix, where forming its square would tell no more (Hutchinson, 1990): norms of
//! powers. A product with them costs `PROBES / n` of one with the matrix.

use crate::backend::{Backend, Op, Result, Shape, Tensor};

/// Vectors. A sum over eigenvalues is found to about `sqrt(2 / PROBES)` of itself, a quarter, even where one of them is all of it.
const PROBES: usize = 32;

/// Where a matrix has no more rows than this, its square costs no more than the probes, and is exact.
const FEW: usize = 2 * PROBES;

/// Of the random vectors; any would do.
const SEED: u64 = 0x9012_7e5e;

/// Applications of the matrix in [`inverse_norm_bounds`].
const POWERS: usize = 4;

/// What `s^2` of [`inverse_norm_bounds`] is raised by, for it is an estimate.
const SAFETY: f32 = 1.05;

/// The same random rows for each member of the batch, `batch x PROBES x n`.
fn rows<B: Backend>(backend: &B, batch: usize, n: usize) -> Result<B::Tensor> {
    let shape = Shape::matrix(PROBES, n);
    let one = backend.random_normal(shape, SEED, 0)?;
    let mut all = backend.zeros(Shape { batch, ..shape })?;
    backend.axpby(1.0, &one, 0.0, &mut all)?;
    Ok(all)
}

/// For Gram matrices `g` (`batch x n x n`) of some `X` a `1 / s` each, `batch x 1 x 1`: no singular value of `X` is above `s`,
/// and the largest not far below, between `s / (1.03 n^(1/16))` and `s`. `(s^2 / 1.05)^8 = n ||Z G^4||^2 / ||Z||^2` is the sum of
/// all `sigma^16`, as random rows `Z` see it. Few rows have `s^4 = ||G^2||`, the root of the sum of all `sigma^8`, and `n^(1/8)`.
/// Zero for a zero matrix.
///
/// The trace of `g` is about 1, so that powers stay within what f32 holds: the largest eigenvalue is above `1 / n`, and its fourth
/// power above `n^-4`.
pub(super) fn inverse_norm_bounds<B: Backend>(backend: &B, g: &B::Tensor) -> Result<B::Tensor> {
    let Shape { batch, rows: n, .. } = g.shape();
    if n <= FEW {
        let mut bounds = backend.frobenius_norms(&backend.gram(g, Op::None)?)?;
        backend.power(&mut bounds, -0.25)?;
        return Ok(bounds);
    }
    let z = rows(backend, batch, n)?;
    let mut y = backend.matmul(&z, Op::None, g, Op::None)?;
    for _ in 1..POWERS {
        y = backend.matmul(&y, Op::None, g, Op::None)?;
    }
    let mut bounds = backend.frobenius_norms(&y)?;
    backend.divide_rows(&mut bounds, &backend.frobenius_norms(&z)?)?;
    // of eigenvalues, and then of their roots
    let exponent = 0.5 / POWERS as f32;
    backend.power(&mut bounds, -exponent)?;
    let factor = (SAFETY.sqrt() * (n as f32).powf(0.5 * exponent)).recip();
    backend.scale_batches(&mut bounds, &backend.upload(Shape::new(batch, 1, 1), &vec![factor; batch])?)?;
    Ok(bounds)
}

/// The roots of two sums over the singular values of `p`, whose short side is `side`: of `sum sigma^2` and of `sum sigma^4`,
/// `batch x 1 x 1` each; as random rows see them, up to one factor for both. They are equal where all singular values are 0 or 1.
pub(super) fn norms_of_powers<B: Backend>(backend: &B, p: &B::Tensor, side: Op) -> Result<[B::Tensor; 2]> {
    let n = side.apply(p.shape()).0;
    if n <= FEW {
        return Ok([backend.frobenius_norms(p)?, backend.frobenius_norms(&backend.gram(p, side)?)?]);
    }
    let other = if side == Op::None { Op::Transpose } else { Op::None };
    let once = backend.matmul(&rows(backend, p.shape().batch, n)?, Op::None, p, side)?;
    let twice = backend.matmul(&once, Op::None, p, other)?;
    Ok([backend.frobenius_norms(&once)?, backend.frobenius_norms(&twice)?])
}

#[cfg(all(test, feature = "merge"))]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    /// `diag(values)`, for each member.
    fn diagonals(members: &[Vec<f32>]) -> crate::backend::cpu::CpuTensor {
        let n = members[0].len();
        let mut all = vec![0.0; members.len() * n * n];
        for (member, values) in all.chunks_mut(n * n).zip(members) {
            values.iter().enumerate().for_each(|(i, &v)| member[i * n + i] = v);
        }
        Cpu.upload(Shape::new(members.len(), n, n), &all).unwrap()
    }

    #[test]
    fn the_largest_singular_value_is_bounded_whatever_the_spectrum() {
        for n in [1, 2, 3, 10, 65, 300] {
            let one = |i: usize| if i == n / 2 { 0.7 } else { 0.0 };
            let spectra: [Vec<f32>; 4] = [
                vec![0.7; n],
                (0..n).map(one).collect(),
                (0..n).map(|i| 0.7 * 0.9f32.powi(i as i32)).collect(),
                (0..n).map(|i| 0.7 / (1 + i) as f32).collect(),
            ];
            let inverses = inverse_norm_bounds(&Cpu, &diagonals(&spectra)).unwrap();
            for (inverse, spectrum) in inverses.values().iter().zip(&spectra) {
                let bound = inverse.powi(-2); // of the eigenvalues that the spectra are
                let factor = if n <= FEW { (n as f32).powf(0.25) } else { SAFETY * (n as f32).powf(0.125) };
                let most = 0.7 * factor * 1.01;
                assert!(
                    (0.7 * 0.999_999..=most).contains(&bound),
                    "{n}: {bound}, at most {most}; {spectrum:?}"
                );
            }
        }
        assert_eq!(inverse_norm_bounds(&Cpu, &diagonals(&[vec![0.0; 5]])).unwrap().values(), [0.0]);
    }

    #[test]
    fn a_singular_value_that_is_neither_0_nor_1_shows() {
        for n in [FEW, 200] {
            let with = |value: f32| (0..n).map(|i| if i == 3 { value } else { 1.0 }).collect::<Vec<_>>();
            let p = diagonals(&[with(1.0), with(0.0), with(0.5)]);
            let [once, twice] = norms_of_powers(&Cpu, &p, Op::None).unwrap();
            let missing: Vec<f32> =
                once.values().iter().zip(twice.values()).map(|(a, b)| (a * a - b * b) / (a * a)).collect();
            assert!(missing[0].abs() < 1e-5 && missing[1].abs() < 1e-5, "{n}: {missing:?}");
            // (0.25 - 0.0625) of n, as far as random rows see it
            let seen = missing[2] / (0.1875 / n as f32);
            assert!((0.4..1.8).contains(&seen), "{n}: {seen}");
        }
    }
}
