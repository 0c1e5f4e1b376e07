//! Linear algebra in f64 on the host, for what f32 cannot carry: `exact`, rank-deficient matrices, and projected problems beyond
//! what the device solves. By faer and on all threads where the feature `merge` brings them; else by short loops of our own,
//! on one thread, so that the algorithms need no other crate.

#[cfg(feature = "merge")]
mod by_faer;
#[cfg(any(not(feature = "merge"), test))]
mod plain;

#[cfg(feature = "merge")]
use by_faer as solver;
#[cfg(not(feature = "merge"))]
use plain as solver;

use crate::backend::{Error, Op, Result};

/// A row-major matrix.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub values: Vec<f64>,
}

/// How many threads one factorization may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Threads {
    /// One: inside a loop that is parallel itself, or where there are no others.
    One,
    /// All of the process.
    All,
}

/// Of a symmetric matrix.
pub(super) struct SymmetricEigen {
    /// The largest first.
    pub values: Vec<f64>,
    /// Row `j` is the eigenvector of value `j`.
    pub vectors: Matrix,
}

impl Matrix {
    pub fn from_fn(rows: usize, cols: usize, f: impl Fn(usize, usize) -> f64) -> Self {
        let values = (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|(i, j)| f(i, j)).collect();
        Matrix { rows, cols, values }
    }

    /// `op(x)` of a row-major `rows x cols` in f32.
    pub fn widened(x: &[f32], rows: usize, cols: usize, op: Op) -> Self {
        match op {
            Op::None => Matrix { rows, cols, values: x.iter().map(|&v| f64::from(v)).collect() },
            Op::Transpose => Matrix::from_fn(cols, rows, |i, j| f64::from(x[j * cols + i])),
        }
    }

    pub fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.cols..(i + 1) * self.cols]
    }

    pub fn rows_that_are_not_zero(&self) -> usize {
        self.values.chunks(self.cols.max(1)).filter(|row| row.iter().any(|&v| v != 0.0)).count()
    }

    /// The first rows.
    pub fn first_rows(&self, rows: usize) -> Matrix {
        let values = self.values[..rows * self.cols].to_vec();
        Matrix { rows, cols: self.cols, values }
    }

    /// `x_ij *= s_i`
    pub fn scale_rows(&mut self, scale: impl Fn(usize) -> f64) {
        for (i, row) in self.values.chunks_mut(self.cols.max(1)).enumerate() {
            let scale = scale(i);
            row.iter_mut().for_each(|v| *v *= scale);
        }
    }

    /// Row-major in f32, of the matrix or its transpose.
    pub fn narrowed(&self, op: Op) -> Vec<f32> {
        match op {
            Op::None => self.values.iter().map(|&v| v as f32).collect(),
            Op::Transpose => {
                let (rows, cols) = (self.rows, self.cols);
                (0..cols).flat_map(|j| (0..rows).map(move |i| self.values[i * cols + j] as f32)).collect()
            }
        }
    }
}

/// `op(a) op(b)`
pub(super) fn product(a: &Matrix, op_a: Op, b: &Matrix, op_b: Op, threads: Threads) -> Matrix {
    solver::product(a, op_a, b, op_b, threads)
}

/// # Errors
/// If `a` holds a value that is not finite, or the iteration does not converge.
pub(super) fn symmetric_eigen(a: &Matrix, threads: Threads) -> Result<SymmetricEigen> {
    if a.values.iter().any(|v| !v.is_finite()) {
        return Err(Error::NotFinite("an eigenproblem"));
    }
    solver::symmetric_eigen(a, threads)
}

/// `Q` of `A = Q R` for a tall matrix, with R's diagonal positive.
pub(super) fn thin_q(a: &Matrix) -> Matrix {
    solver::thin_q(a)
}

/// `op(a) op(a)^T`
pub(super) fn gram(a: &Matrix, op: Op, threads: Threads) -> Matrix {
    solver::gram(a, op, threads)
}

/// `R`, upper triangular, `n x n` and row-major, with `R^T R = X^T X` for a row-major `x` of `n` columns, whatever its rank, by
/// Cholesky. None if `x` holds a value that is not finite.
pub(super) fn triangular_factor(x: &[f32], n: usize, threads: Threads) -> Option<Vec<f32>> {
    if n == 0 {
        return Some(Vec::new());
    }
    solver::triangular_factor(x, n, threads)
}

/// What is added to the diagonal of a Gram matrix of order `n`, of `m` rows, so that rounding leaves it positive definite: its own, of
/// sums of `m`, and that of its Cholesky factorization, both of the trace. None if that is not finite.
fn lift(trace: f64, m: usize, n: usize) -> Option<f64> {
    let rounding = f64::EPSILON * (n as f64 + (m as f64).sqrt()) * trace;
    rounding.is_finite().then_some(rounding.max(f64::MIN_POSITIVE))
}

/// Does something for every member of a batch, side by side where there are threads for it.
pub(super) fn for_each_member<T: Send>(
    batch: usize,
    solve: impl Fn(usize, Threads) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    solver::for_each_member(batch, solve)
}

#[cfg(all(test, feature = "merge"))]
mod tests {
    use super::*;

    fn random(rows: usize, cols: usize) -> Matrix {
        // a Weyl sequence, folded: neither symmetric nor of low rank
        let at = |i: usize, j: usize| (((i * cols + j + 1) as f64 * 0.754_877_666).fract() - 0.5).powi(3);
        Matrix::from_fn(rows, cols, at)
    }

    fn distance(a: &Matrix, b: &Matrix) -> f64 {
        assert_eq!((a.rows, a.cols), (b.rows, b.cols));
        a.values.iter().zip(&b.values).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn both_solvers_give_the_same() {
        let members = |b: usize, _| Ok(b);
        assert_eq!(by_faer::for_each_member(5, members), plain::for_each_member(5, members));
        let (a, b) = (random(17, 9), random(17, 12));
        let products =
            [by_faer::product, plain::product].map(|p| p(&a, Op::Transpose, &b, Op::None, Threads::One));
        assert!(distance(&products[0], &products[1]) < 1e-14);
        let gram = product(&a, Op::Transpose, &a, Op::None, Threads::One);
        let eigen = [by_faer::symmetric_eigen, plain::symmetric_eigen]
            .map(|solve| solve(&gram, Threads::One).unwrap());
        for j in 0..9 {
            assert!((eigen[0].values[j] - eigen[1].values[j]).abs() < 1e-15 * eigen[0].values[0].max(1.0));
            let overlap: f64 =
                eigen[0].vectors.row(j).iter().zip(eigen[1].vectors.row(j)).map(|(a, b)| a * b).sum();
            assert!((overlap.abs() - 1.0).abs() < 1e-9, "{j}: {overlap}");
        }
        assert!(distance(&by_faer::thin_q(&a), &plain::thin_q(&a)) < 1e-12);
        for op in [Op::None, Op::Transpose] {
            let grams = [by_faer::gram, plain::gram].map(|gram| gram(&a, op, Threads::One));
            assert!(distance(&grams[0], &grams[1]) < 1e-14);
        }
    }

    #[test]
    fn triangular_factors_have_the_inner_products_of_their_columns_whatever_the_rank() {
        let n = 9;
        // more rows than are widened at a time; columns that depend on others, are 1e-5 of them, or zero; rows of zeros
        let x = random(700, n);
        let of_rank_6 = |i: usize, j: usize| match j {
            _ if i % 7 == 3 => 0.0,
            4 => 0.0,
            7 => x.row(i)[0] - 2.0 * x.row(i)[1],
            8 => 1e-5 * x.row(i)[8],
            _ => x.row(i)[j],
        };
        let x = Matrix::from_fn(700, n, of_rank_6).narrowed(Op::None);
        let x64 = Matrix::widened(&x, 700, n, Op::None);
        let truth = gram(&x64, Op::Transpose, Threads::One);
        for factor in [by_faer::triangular_factor, plain::triangular_factor] {
            let r = factor(&x, n, Threads::One).unwrap();
            assert!((0..n).all(|i| r[i * n..i * n + i].iter().all(|&v| v == 0.0)));
            let r = Matrix::widened(&r, n, n, Op::None);
            let found = gram(&r, Op::Transpose, Threads::One);
            // f32 rounds every entry of R, so that inner products are right to the lengths of their columns
            for i in 0..n {
                for j in 0..n {
                    let lengths = (truth.row(i)[i] * truth.row(j)[j]).sqrt();
                    let off = (found.row(i)[j] - truth.row(i)[j]).abs();
                    assert!(
                        off <= 3e-7 * lengths + 1e-13 * truth.row(0)[0],
                        "{i}, {j}: {off:e} of {lengths:e}"
                    );
                }
            }
            assert!(factor(&[1.0, f32::NAN, 2.0, 3.0], 2, Threads::One).is_none());
            assert!(factor(&[0.0; 12], 3, Threads::One).unwrap().iter().all(|v| v.abs() < 1e-30));
        }
    }

    #[test]
    fn jacobi_holds_for_zeros_multiple_eigenvalues_and_order_one() {
        for a in [
            Matrix::from_fn(1, 1, |_, _| -3.0),
            Matrix::from_fn(6, 6, |_, _| 0.0),
            Matrix::from_fn(6, 6, |i, j| if i == j { 2.0 } else { 1.0 }),
        ] {
            let SymmetricEigen { values, vectors } = plain::symmetric_eigen(&a, Threads::One).unwrap();
            assert!(values.is_sorted_by(|a, b| a >= b));
            let scaled = Matrix::from_fn(a.rows, a.rows, |i, j| values[i] * vectors.row(i)[j]);
            let back = plain::product(&vectors, Op::Transpose, &scaled, Op::None, Threads::One);
            assert!(distance(&back, &a) < 1e-13);
        }
        assert!(symmetric_eigen(&Matrix::from_fn(2, 2, |_, _| f64::NAN), Threads::One).is_err());
    }
}
