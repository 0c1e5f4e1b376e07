//! Factorizations in f64 on the host, for what f32 cannot carry: the `exact` setting and rank-deficient layers.

use super::{Error, Result};
use crate::host::all_threads;
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{self as llt, cholesky_in_place_scratch};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};

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
    symmetric_eigen_with(a, all_threads())
}

/// [`symmetric_eigen`] with the threads given by the caller (one, inside a loop that is parallel itself).
pub fn symmetric_eigen_with(a: MatRef<'_, f64>, par: Par) -> Result<SymmetricEigen> {
    let n = a.nrows();
    // small problems lose more to synchronisation than a second thread gives
    let par = if n < 192 { Par::Seq } else { par };
    if a.col_iter().flat_map(|c| c.iter()).any(|v| !v.is_finite()) {
        return Err(Error::NotFinite("an eigenproblem"));
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
    Ok(SymmetricEigen { values, vectors: u.reverse_cols().to_owned() })
}

/// `Q` (orthonormal columns) and `R` (upper triangular) of a tall matrix.
pub fn thin_qr(a: &Mat<f64>) -> (Mat<f64>, Mat<f64>) {
    let qr = a.qr();
    (qr.compute_thin_Q(), qr.thin_R().to_owned())
}

/// The lower triangle of `A A^T` is added to that of `gram`.
pub fn add_gram_of_rows(gram: MatMut<'_, f64>, a: MatRef<'_, f64>, par: Par) {
    let (lower, whole) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    triangular::matmul(gram, lower, Accum::Add, a, whole, a.transpose(), whole, 1.0, par);
}

/// `L` with `A = L L^T` in place of a symmetric positive definite matrix, in its lower triangle; false if it is not that in f64.
pub fn cholesky_in_place(a: MatMut<'_, f64>, par: Par) -> bool {
    let scratch = cholesky_in_place_scratch::<f64>(a.nrows(), par, Default::default());
    let mut memory = MemBuffer::new(scratch);
    llt::cholesky_in_place(a, Default::default(), par, MemStack::new(&mut memory), Default::default()).is_ok()
}

/// `A B` in f64.
pub fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>, par: Par) -> Mat<f64> {
    let mut c = Mat::zeros(a.nrows(), b.ncols());
    matmul(c.as_mut(), Accum::Replace, a, b, 1.0, par);
    c
}

/// `A^-1 B` for a symmetric positive definite `A` (the lower triangle is read), by Cholesky.
///
/// # Errors
/// If `A` is not positive definite in f64.
pub fn solve_positive_definite(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let factor = a.llt(Side::Lower).map_err(|_| Error::NotFinite("a matrix to be factored"))?;
    Ok(factor.solve(b))
}
