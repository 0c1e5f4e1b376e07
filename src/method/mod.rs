//! The merging methods: each equation of the papers is a function of its name.
//!
//! *Paper 1* is "Model Merging in the Essential Subspace" (CVPR 2026, arXiv 2602.20208), *paper 2* "Essential Subspace
//! Merging for Multi-Task Learning" (arXiv 2606.19164). A method sees tensors on a backend and nothing else: no files,
//! no layer names. Throughout, T tasks share a linear layer `y = W x` with `W` of `d_out x d_in`; `dW_t = W_t - W_0`.
//! L layers of one shape are merged in one batch: first all tasks of the first layer, then those of the next.

pub mod arithmetic;
pub mod assembly;
pub mod esd;
pub mod esm;
pub mod esm_plus;
mod fusion;
pub mod low_rank;
pub mod options;
pub mod tsv;

pub use fusion::{MergedFactors, MergedLayer, MergedLayers};
pub use options::{AlphaScope, Decomposition, EsmOptions, Fusion, Preset, Scale, TaskNorm};

use crate::backend::{Backend, Result, Shape, Tensor};
use crate::linalg::Accuracy;

/// What every method needs to know about how to compute.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solver {
    /// Accuracy against time.
    pub accuracy: Accuracy,
    /// Seed of the random starts.
    pub seed: u64,
}

/// One tensor of all batches, in order; where one has fewer rows than another, rows of zeros follow.
pub(crate) fn join_batches<B: Backend>(backend: &B, mut parts: Vec<B::Tensor>) -> Result<B::Tensor> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let total = parts.iter().map(|p| p.shape().batch).sum();
    let first = parts.first().map_or(Shape::new(0, 0, 0), Tensor::shape);
    let most = parts.iter().map(|p| p.shape().rows).max().unwrap_or(0);
    let mut joined = backend.zeros(Shape { batch: total, rows: most, ..first })?;
    let mut at = 0;
    for part in &parts {
        let Shape { batch, rows, cols } = part.shape();
        backend.copy_block(part, [0, 0, 0], &mut joined, [at, 0, 0], [batch, rows, cols])?;
        at += batch;
    }
    Ok(joined)
}
