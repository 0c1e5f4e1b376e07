//! Methods that decompose the matrices of a layer: what they share.

use super::esd::Inputs;
use super::tsv::{TaskTriples, task_triples};
use super::values::Values;
use super::{Solver, join_batches};
use crate::backend::{Backend, Op, Result, Shape, Tensor};
use crate::linalg::{Polar, SymmetricProduct, leading_eigenpairs, polar};

/// One layer in all models.
pub struct Matrices<'a, T> {
    /// `dW_t` of every task, `d_out x d_in` each.
    pub deltas: &'a [T],
    /// What is known of the layer's inputs in every task; empty if nothing is.
    pub inputs: &'a [Inputs<T>],
    /// The base's weights, if the method wants them.
    pub base: Option<&'a T>,
}

/// A method for the matrices of layers, with its parameters.
#[allow(async_fn_in_trait)] // driven on the calling thread, as the backend's futures are
pub trait Spectral: Sized {
    /// The method with parameters.
    ///
    /// # Errors
    /// Says which do not go together.
    fn new(values: &Values) -> std::result::Result<Self, String>;

    /// Whether it wants the base's weights.
    fn wants_base(&self) -> bool {
        false
    }

    /// Whether differences `U^T K_t`, with orthonormal rows `U`, merge to `U^T` times what the `K_t` merge to, however many rows
    /// these have.
    fn turns_with_outputs(&self) -> bool {
        false
    }

    /// The merged delta of a layer, `d_out x d_in`.
    async fn merge<B: Backend>(
        &self,
        backend: &B,
        layer: &Matrices<'_, B::Tensor>,
        solver: Solver,
    ) -> Result<B::Tensor>;
}

/// `sum_t c_t D_t`
pub(super) fn weighted_sum<B: Backend>(
    backend: &B,
    deltas: &[B::Tensor],
    factors: &[f64],
) -> Result<B::Tensor> {
    let shape = deltas.first().map_or(Shape::new(1, 0, 0), Tensor::shape);
    let mut sum = backend.zeros(shape)?;
    for (delta, &factor) in deltas.iter().zip(factors) {
        backend.axpby(factor as f32, delta, 1.0, &mut sum)?;
    }
    Ok(sum)
}

/// The plain sum.
pub(super) fn sum<B: Backend>(backend: &B, deltas: &[B::Tensor]) -> Result<B::Tensor> {
    weighted_sum(backend, deltas, &vec![1.0; deltas.len()])
}

/// The `k` leading singular triples of one matrix, `k` at least 1.
pub(super) async fn triples<B: Backend>(
    backend: &B,
    matrix: &B::Tensor,
    k: usize,
    solver: Solver,
) -> Result<TaskTriples<B::Tensor>> {
    task_triples(backend, matrix, k.max(1), solver).await
}

/// Rows of several matrices of as many columns, one below the other.
pub(super) fn stacked<B: Backend>(backend: &B, parts: &[&B::Tensor]) -> Result<B::Tensor> {
    let cols = parts.first().map_or(0, |part| part.shape().cols);
    let mut all = backend.zeros(Shape::matrix(parts.iter().map(|part| part.shape().rows).sum(), cols))?;
    let mut row = 0;
    for part in parts {
        let rows = part.shape().rows;
        backend.copy_block(part, [0, 0, 0], &mut all, [0, row, 0], [1, rows, cols])?;
        row += rows;
    }
    Ok(all)
}

/// A batch of matrices of one shape.
pub(super) fn batched<B: Backend>(backend: &B, parts: &[B::Tensor]) -> Result<B::Tensor> {
    join_batches(backend, parts.iter().map(|part| backend.duplicate(part)).collect::<Result<_>>()?)
}

/// The polar factor and the nuclear norm of one matrix.
pub(super) async fn polar_of<B: Backend>(
    backend: &B,
    matrix: &B::Tensor,
    solver: Solver,
) -> Result<(B::Tensor, f64)> {
    let Polar { factor, nuclear_norms, .. } = polar(backend, matrix, solver.accuracy).await?;
    Ok((factor, nuclear_norms.first().copied().unwrap_or(0.0)))
}

/// `diag(s) X`
pub(super) fn scaled_rows<B: Backend>(backend: &B, mut x: B::Tensor, s: &[f64]) -> Result<B::Tensor> {
    let s: Vec<f32> = s.iter().map(|&s| s as f32).collect();
    backend.scale_rows(&mut x, &backend.upload(Shape::matrix(s.len(), 1), &s)?)?;
    Ok(x)
}

/// The orthonormal basis, as rows, of what the columns of all matrices span: the left singular vectors of their concatenation
/// `[D_1 | ... | D_T]` whose singular values are above `cut` of the largest.
pub(super) async fn common_columns<B: Backend>(
    backend: &B,
    deltas: &[B::Tensor],
    cut: f64,
    solver: Solver,
) -> Result<B::Tensor> {
    let shape = deltas.first().map_or(Shape::new(1, 0, 0), Tensor::shape);
    // [D_1 | ... | D_T] as d_out x T d_in
    let mut all = backend.zeros(Shape::matrix(shape.rows, shape.cols * deltas.len()))?;
    for (t, delta) in deltas.iter().enumerate() {
        backend.copy_block(
            delta,
            [0, 0, 0],
            &mut all,
            [0, 0, t * shape.cols],
            [1, shape.rows, shape.cols],
        )?;
    }
    let k = shape.rows.min(shape.cols * deltas.len());
    let c = SymmetricProduct::Factor { x: &all, op: Op::None };
    let pairs = leading_eigenpairs(backend, c, k, &[k], solver.accuracy, solver.seed).await?;
    let values = pairs.values.first().map_or(&[][..], |values| values);
    let least = cut * cut * values.first().copied().unwrap_or(0.0);
    let rank = values.iter().take_while(|&&value| value > least).count().max(1);
    backend.slice(&pairs.basis, 0..1, 0..rank.min(k), 0..shape.rows)
}
