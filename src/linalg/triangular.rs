//! The triangular factor of a tall matrix.

use super::host::{self, Threads};
use crate::backend::{Backend, Result, Shape, Tensor};

/// `R` (`batch x n x n`) with `R^T R = X^T X` for `x` (`batch x m x n`): the Cholesky factor of the Gram matrix in f64, on the host. For
/// whatever looks at inner products of columns alone, `n` rows in place of `m`.
///
/// Zero rows of `x` do not count, and dependent columns do no harm: `2^-52 (n + sqrt(m))` of its trace is added to the diagonal of the Gram
/// matrix for its rounding, which is about 1e-6 of the norm of `x` in `R`. None if `x` holds a number that is not finite.
pub async fn triangular_factor<B: Backend>(backend: &B, x: &B::Tensor) -> Result<Option<B::Tensor>> {
    let Shape { batch, rows, cols } = x.shape();
    let values = backend.download(x).await?;
    let member = |b: usize, threads: Threads| {
        Ok(host::triangular_factor(&values[b * rows * cols..(b + 1) * rows * cols], cols, threads))
    };
    let factors: Option<Vec<Vec<f32>>> = host::for_each_member(batch, member)?.into_iter().collect();
    factors.map(|all| backend.upload(Shape::new(batch, cols, cols), &all.concat())).transpose()
}
