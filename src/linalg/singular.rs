//! Singular values in f64, for reports and tests.

use super::host::{self, Matrix, product, symmetric_eigen};
use crate::backend::{Backend, Op, Result, Tensor};

/// The `min(rows, cols)` singular values of every member of the batch, descending, from the smaller Gram matrix in f64:
/// those below 1e-8 of the largest are rounding noise.
pub async fn singular_values<B: Backend>(backend: &B, a: &B::Tensor) -> Result<Vec<Vec<f64>>> {
    let shape = a.shape();
    let values = backend.download(a).await?;
    let wide = if shape.rows <= shape.cols { Op::None } else { Op::Transpose };
    host::for_each_member(shape.batch, |b, threads| {
        let matrix = &values[b * shape.matrix_len()..(b + 1) * shape.matrix_len()];
        let a = Matrix::widened(matrix, shape.rows, shape.cols, wide);
        let eigen = symmetric_eigen(&product(&a, Op::None, &a, Op::Transpose, threads), threads)?;
        Ok(eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect())
    })
}
