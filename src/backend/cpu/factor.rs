//! `inverse_cholesky` and `symmetric_eigen`.

use super::parallel::for_each_matrix;
use super::{CpuTensor, Error, Result, Shape, dense, memory};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use std::sync::atomic::{AtomicBool, Ordering};

/// Order of the diagonal blocks that are factored one column at a time.
const BLOCK: usize = 32;

pub fn inverse_cholesky(g: &CpuTensor, smallest: f32) -> Result<CpuTensor> {
    let n = g.shape.rows;
    let mut values = memory::zeros(g.shape.len());
    let failed = AtomicBool::new(false);
    for_each_matrix(&mut values, n * n, n * n * n, |i, w, par| {
        if !inverse_cholesky_of(g.matrix(i), n, smallest, w, par) {
            failed.store(true, Ordering::Relaxed);
        }
    });
    if failed.into_inner() {
        return Err(Error::Internal("a Cholesky factorization met a value that is not finite".into()));
    }
    Ok(CpuTensor::new(g.shape, values))
}

/// `w = L^(-1) S` for `L L^T = S g S`, pivots lifted; false if the result is not finite.
fn inverse_cholesky_of(g: &[f32], n: usize, smallest: f32, w: &mut [f32], par: Par) -> bool {
    let s: Vec<f32> =
        (0..n).map(|i| if g[i * n + i] > 0.0 { g[i * n + i].sqrt().recip() } else { 0.0 }).collect();
    // faer's matrices lie by columns; g is symmetric, and its rows are read as they lie
    let mut l = Mat::from_fn(n, n, |i, j| if i == j { 1.0 } else { s[i] * g[j * n + i] * s[j] });
    cholesky_with_lifted_pivots(l.as_mut(), smallest, par);
    let mut inverse = Mat::<f32>::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), l.as_ref(), par);
    for first_row in (0..n).step_by(BLOCK) {
        let rows = first_row..n.min(first_row + BLOCK);
        for (j, &scale) in s.iter().enumerate().take(rows.end) {
            for i in rows.start.max(j)..rows.end {
                if s[i] > 0.0 {
                    w[i * n + j] = inverse[(i, j)] * scale;
                }
            }
        }
    }
    w.iter().all(|v| v.is_finite())
}

/// In the lower triangle, by halves; a pivot below `lift` becomes `lift`, and the column below it 0. Returns the columns of
/// which that is so.
fn cholesky_with_lifted_pivots(a: MatMut<'_, f32>, lift: f32, par: Par) -> Vec<usize> {
    let n = a.nrows();
    if n <= BLOCK {
        return factor_block(a, lift);
    }
    let half = (n / 2).next_multiple_of(BLOCK);
    let (mut a11, _, mut a21, mut a22) = a.split_at_mut(half, half);
    let mut lifted = cholesky_with_lifted_pivots(a11.as_mut(), lift, par);
    solve_lower_triangular_in_place(a11.as_ref(), a21.as_mut().transpose_mut(), par);
    lifted.iter().for_each(|&j| a21.as_mut().col_mut(j).fill(0.0));
    triangular::matmul(
        a22.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Add,
        a21.as_ref(),
        BlockStructure::Rectangular,
        a21.as_ref().transpose(),
        BlockStructure::Rectangular,
        -1.0,
        par,
    );
    lifted.extend(cholesky_with_lifted_pivots(a22, lift, par).into_iter().map(|j| half + j));
    lifted
}

/// A diagonal block, a column at a time; returns the columns whose pivots were lifted.
fn factor_block(mut a: MatMut<'_, f32>, lift: f32) -> Vec<usize> {
    let n = a.nrows();
    let mut lifted = Vec::new();
    for j in 0..n {
        let pivot = a[(j, j)].max(lift).sqrt();
        if a[(j, j)] < lift {
            // what is left of this column is rounding noise, which would grow from one lifted pivot to the next
            lifted.push(j);
            (j + 1..n).for_each(|i| a[(i, j)] = 0.0);
        }
        a[(j, j)] = pivot;
        (j + 1..n).for_each(|i| a[(i, j)] /= pivot);
        for k in j + 1..n {
            let factor = a[(k, j)];
            (k..n).for_each(|i| a[(i, k)] -= a[(i, j)] * factor);
        }
    }
    lifted
}

pub fn symmetric_eigen(a: &CpuTensor) -> Result<(CpuTensor, CpuTensor)> {
    let (batch, n) = (a.shape.batch, a.shape.rows);
    let (mut values, mut vectors) = (Vec::with_capacity(batch * n), Vec::with_capacity(batch * n * n));
    for b in 0..batch {
        let a_b = MatRef::from_row_major_slice(a.matrix(b), n, n);
        let eigen = dense::symmetric_eigen(Mat::from_fn(n, n, |i, j| f64::from(a_b[(i, j)])).as_ref())?;
        values.extend(eigen.values.iter().map(|&v| v as f32));
        for j in 0..n {
            vectors.extend((0..n).map(|i| eigen.vectors[(i, j)] as f32));
        }
    }
    Ok((CpuTensor::new(Shape::new(batch, 1, n), values), CpuTensor::new(a.shape, vectors)))
}
