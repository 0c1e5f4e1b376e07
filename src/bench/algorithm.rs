//! What is made of many kernels, over any backend.

use super::case::HEAD;
use super::{Case, Kernel, Size};
use crate::backend::layers::{Attention, Layers};
use crate::backend::{self, Op, Shape, Tensor};
use crate::linalg::{Accuracy, SymmetricProduct, leading_eigenpairs, orthonormalize_rows, polar};

/// Runs one, and gives what it leaves: mixed values, or rows that are orthonormal. The device may still be at work when this returns.
pub(super) async fn run<B: Layers>(backend: &B, case: &Case, x: &B::Tensor) -> backend::Result<B::Tensor> {
    let Size { batch, rows, cols, depth } = case.size;
    match case.kernel {
        Kernel::Attention => {
            let segments = backend.segments(&vec![rows; batch])?;
            let (heads, scale) = (cols / HEAD, 1.0 / (HEAD as f32).sqrt());
            let kind = Attention { heads, key_heads: heads, causal: false, window: None, scale, cap: None };
            backend.attention(x, x, x, &segments, kind, None)
        }
        Kernel::OrthonormalizeRows => orthonormalize_rows(backend, backend.duplicate(x)?, 2),
        Kernel::LeadingEigenpairs => {
            let c = SymmetricProduct::Factor { x, op: Op::Transpose };
            let ranks = vec![cols.min(depth.unwrap_or(cols)); x.shape().batch];
            leading_eigenpairs(backend, c, rows, &ranks, Accuracy::Balanced, 1).await.map(|pairs| pairs.basis)
        }
        Kernel::Polar => polar(backend, x, Accuracy::Balanced).await.map(|polar| polar.factor),
        _ => backend.zeros(Shape::matrix(0, 0)), // a kernel of its own
    }
}
