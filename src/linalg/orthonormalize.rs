//! CholeskyQR, and block Gram-Schmidt to append a block to a basis.

use super::host::{Matrix, thin_q};
use crate::backend::{Backend, Op, Result, Tensor};

/// Replaces the rows of `y` (`batch x k x d`, `k <= d`) by an orthonormal basis of their span: `passes` rounds of
/// CholeskyQR with scaling and an adaptive shift, `Q = L^(-1) S Y` with `L L^T = S Y Y^T S`.
///
/// One round leaves `|Q Q^T - I|` of about `cond(S Y)^2 2^-24`; two suffice below a condition number of 1e3, and three
/// whatever the condition (the shift repairs at least three digits a round). Zero rows stay zero.
pub fn orthonormalize_rows<B: Backend>(backend: &B, mut y: B::Tensor, passes: usize) -> Result<B::Tensor> {
    for _ in 0..passes {
        y = backend.apply_inverse_cholesky(&backend.gram(&y, Op::None)?, &y)?;
    }
    Ok(y)
}

/// An orthonormal block spanning what the rows of `y` (`batch x p x d`) add to the orthonormal rows of `basis`
/// (`batch x k x d`): block classical Gram-Schmidt with reorthogonalisation (BCGS2, Barlow and Smoktunowicz 2013).
pub fn append_block<B: Backend>(backend: &B, basis: &B::Tensor, mut y: B::Tensor) -> Result<B::Tensor> {
    for passes in [2, 1] {
        let overlap = backend.matmul(&y, Op::None, basis, Op::Transpose)?;
        backend.gemm(-1.0, &overlap, Op::None, basis, Op::None, 1.0, &mut y)?;
        y = orthonormalize_rows(backend, y, passes)?;
    }
    Ok(y)
}

/// The orthonormal factor of a thin QR along the short side, with R's diagonal positive: for `rows <= cols` the rows of
/// the result are orthonormal, else its columns. In f64 on the host: Q moves by `cond 2^-24` when its input is rounded,
/// which no f32 factorization survives on the concatenations of a merge.
pub async fn qr_rows<B: Backend>(backend: &B, a: &B::Tensor) -> Result<B::Tensor> {
    let shape = a.shape();
    let values = backend.download(a).await?;
    let tall = if shape.rows <= shape.cols { Op::Transpose } else { Op::None };
    let mut out = Vec::with_capacity(values.len());
    for matrix in values.chunks(shape.matrix_len().max(1)) {
        out.extend(thin_q(&Matrix::widened(matrix, shape.rows, shape.cols, tall)).narrowed(tall));
    }
    backend.upload(shape, &out)
}
