//! Singular values in f64, for reports and tests.

use crate::backend::cpu::dense;
use crate::backend::{Backend, Result, Tensor};
use faer::{MatRef, Par};

/// The `min(rows, cols)` singular values of every member of the batch, descending, from the smaller Gram matrix in f64:
/// those below 1e-8 of the largest are rounding noise.
pub async fn singular_values<B: Backend>(backend: &B, a: &B::Tensor) -> Result<Vec<Vec<f64>>> {
    let shape = a.shape();
    let values = backend.download(a).await?;
    (0..shape.batch)
        .map(|b| {
            let matrix = &values[b * shape.matrix_len()..(b + 1) * shape.matrix_len()];
            let a = MatRef::from_row_major_slice(matrix, shape.rows, shape.cols);
            let wide = if shape.rows <= shape.cols { a } else { a.transpose() };
            let eigen = dense::symmetric_eigen(dense::gram_of_rows(wide, Par::rayon(0)).as_ref())?;
            Ok(eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect())
        })
        .collect()
}
