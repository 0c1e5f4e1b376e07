//! Factorizations in f64 on the host, for what f32 cannot carry: the `exact` setting and rank-deficient layers.

use super::{Error, Result};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, MatRef, Par};

/// Eigenvalues, descending, and the eigenvectors as columns in the same order.
pub struct SymmetricEigen {
    /// `n` eigenvalues, the largest first.
    pub values: Vec<f64>,
    /// `n x n`; column `j` belongs to eigenvalue `j`.
    pub vectors: Mat<f64>,
}

/// Eigendecomposition of a symmetric matrix (the lower triangle is read).
///
/// # Errors
/// If `a` holds a value that is not finite, or the iteration does not converge.
pub fn symmetric_eigen(a: MatRef<'_, f64>) -> Result<SymmetricEigen> {
    symmetric_eigen_with(a, Par::rayon(0))
}

/// [`symmetric_eigen`] with the threads given by the caller (one, inside a loop that is parallel itself).
pub fn symmetric_eigen_with(a: MatRef<'_, f64>, par: Par) -> Result<SymmetricEigen> {
    let n = a.nrows();
    // small problems lose more to synchronisation than a second thread gives
    let par = if n < 192 { Par::Seq } else { par };
    if a.col_iter().flat_map(|c| c.iter()).any(|v| !v.is_finite()) {
        return Err(Error::Internal("an eigenproblem holds a value that is not finite".into()));
    }
    let (mut ascending, mut u) = (Diag::<f64>::zeros(n), Mat::<f64>::zeros(n, n));
    let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, par, Default::default());
    let mut memory = MemBuffer::new(scratch);
    self_adjoint_evd(
        a,
        ascending.as_mut(),
        Some(u.as_mut()),
        par,
        MemStack::new(&mut memory),
        Default::default(),
    )
    .map_err(|_| Error::Internal("an eigendecomposition did not converge".into()))?;
    let values = (0..n).rev().map(|i| ascending.column_vector()[i]).collect();
    u.reverse_cols_mut();
    Ok(SymmetricEigen { values, vectors: u })
}
