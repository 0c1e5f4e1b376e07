//! By faer, on all threads.

use super::{Matrix, SymmetricEigen, Threads};
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
