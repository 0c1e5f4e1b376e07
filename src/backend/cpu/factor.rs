//! `inverse_cholesky` and `symmetric_eigen`.

use super::parallel::for_each_matrix;
use super::{CpuTensor, Error, Result, Shape, dense};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Mat, MatRef, Par};
use std::sync::atomic::{AtomicBool, Ordering};

pub fn inverse_cholesky(g: &CpuTensor) -> Result<CpuTensor> {
    let n = g.shape.rows;
    let mut values = vec![0f32; g.shape.len()];
    let failed = AtomicBool::new(false);
    for_each_matrix(&mut values, n * n, n * n * n, |i, w, par| {
        if !inverse_cholesky_of(g.matrix(i), n, w, par) {
            failed.store(true, Ordering::Relaxed);
        }
    });
    if failed.into_inner() {
        return Err(Error::Internal("the Cholesky factorization met a value that is not finite".into()));
    }
    Ok(CpuTensor::new(g.shape, values))
}

/// `w = L^(-1) S` for `L L^T = S g S + shift`; false if `g` holds something that is not finite.
fn inverse_cholesky_of(g: &[f32], n: usize, w: &mut [f32], par: Par) -> bool {
    let s: Vec<f32> =
        (0..n).map(|i| if g[i * n + i] > 0.0 { g[i * n + i].sqrt().recip() } else { 0.0 }).collect();
    let mut l = Mat::from_fn(n, n, |i, j| if i == j { 1.0 } else { s[i] * g[i * n + j] * s[j] });
    let shift = 8.0 * n as f32 * 2f32.powi(-24);
    let lift =
        LltRegularization { dynamic_regularization_delta: shift, dynamic_regularization_epsilon: shift };
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f32>(n, par, Default::default()));
    if cholesky_in_place(l.as_mut(), lift, par, MemStack::new(&mut memory), Default::default()).is_err() {
        return false;
    }
    let mut inverse = Mat::<f32>::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), l.as_ref(), par);
    for i in 0..n {
        if s[i] > 0.0 {
            (0..=i).for_each(|j| w[i * n + j] = inverse[(i, j)] * s[j]);
        }
    }
    w.iter().all(|v| v.is_finite())
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
