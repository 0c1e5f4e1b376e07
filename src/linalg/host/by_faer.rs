//! By faer, on all threads.

use super::{Matrix, SymmetricEigen, Threads, lift};
use crate::backend::cpu::dense;
use crate::backend::{Op, Result};
use crate::host::all_threads;
use faer::{Mat, MatRef, Par};
use rayon::prelude::*;

fn view(a: &Matrix, op: Op) -> MatRef<'_, f64> {
    let a = MatRef::from_row_major_slice(&a.values, a.rows, a.cols);
    if op == Op::None { a } else { a.transpose() }
}

fn par(threads: Threads) -> Par {
    if threads == Threads::One { Par::Seq } else { all_threads() }
}

/// The transpose of a matrix of faer, whose columns are contiguous, as rows.
fn columns_as_rows(a: &Mat<f64>) -> Matrix {
    let values = a.col_iter().flat_map(|column| column.iter().copied()).collect();
    Matrix { rows: a.ncols(), cols: a.nrows(), values }
}

pub fn product(a: &Matrix, op_a: Op, b: &Matrix, op_b: Op, threads: Threads) -> Matrix {
    // C^T = B^T A^T, whose columns are the rows of C
    let transposed = dense::product(view(b, op_b).transpose(), view(a, op_a).transpose(), par(threads));
    columns_as_rows(&transposed)
}

pub fn gram(a: &Matrix, op: Op, threads: Threads) -> Matrix {
    let rows = view(a, op);
    let mut gram = Mat::zeros(rows.nrows(), rows.nrows());
    dense::add_gram_of_rows(gram.as_mut(), rows, par(threads));
    Matrix::from_fn(gram.nrows(), gram.nrows(), |i, j| gram[(i.max(j), i.min(j))])
}

/// Rows that are widened at a time.
const SLAB: usize = 512;

pub fn triangular_factor(x: &[f32], n: usize, threads: Threads) -> Option<Vec<f32>> {
    let mut gram = Mat::<f64>::zeros(n, n);
    for slab in x.chunks(SLAB * n) {
        // columns are rows of `x`
        let wide = Mat::from_fn(n, slab.len() / n, |i, j| f64::from(slab[j * n + i]));
        dense::add_gram_of_rows(gram.as_mut(), wide.as_ref(), par(threads));
    }
    let lift = lift((0..n).map(|i| gram[(i, i)]).sum(), x.len() / n, n)?;
    (0..n).for_each(|i| gram[(i, i)] += lift);
    if !dense::cholesky_in_place(gram.as_mut(), par(threads)) {
        return None;
    }
    // rows of R are columns of L
    let row =
        |i: usize| gram.col(i).iter().enumerate().map(move |(j, &l)| if j < i { 0.0 } else { l as f32 });
    Some((0..n).flat_map(row).collect())
}

pub fn symmetric_eigen(a: &Matrix, threads: Threads) -> Result<SymmetricEigen> {
    let eigen = dense::symmetric_eigen_with(view(a, Op::None), par(threads))?;
    Ok(SymmetricEigen { values: eigen.values, vectors: columns_as_rows(&eigen.vectors) })
}

pub fn thin_q(a: &Matrix) -> Matrix {
    let (q, r) = dense::thin_qr(&view(a, Op::None).to_owned());
    let sign = |j: usize| if r[(j, j)] < 0.0 { -1.0 } else { 1.0 };
    Matrix::from_fn(q.nrows(), q.ncols(), |i, j| sign(j) * q[(i, j)])
}

pub fn for_each_member<T: Send>(
    batch: usize,
    solve: impl Fn(usize, Threads) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let threads = if batch >= rayon::current_num_threads() { Threads::One } else { Threads::All };
    (0..batch).into_par_iter().map(|b| solve(b, threads)).collect()
}
