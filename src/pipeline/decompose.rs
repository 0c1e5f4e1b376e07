//! First half of a merge: the layers that are decomposed. Their deltas are spilled to a file, because inter-layer
//! scaling compares the norms of all of them before the first can be written.

use super::inputs::{layer_inputs, statistic};
use super::rounding::{Rounding, norms};
use super::weights::layer_deltas;
use super::{Error, Job};
use crate::backend::{Backend, Dtype};
use crate::calibration::Captured;
use crate::checkpoint::first_not_finite;
use crate::method::{EsmOptions, Solver, esm, tsv};
use crate::plan::{Expert, Layer, Role};
use std::ops::Range;

/// What is known of a layer once it is merged.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    /// `||dW||_F`
    pub norm: f64,
    /// `s_t`; empty where tasks are not scaled.
    pub task_scales: Vec<f64>,
    /// Per task.
    pub energy_retention: Vec<f64>,
    /// Whether a concatenation was rank-deficient.
    pub rank_deficient: bool,
}

/// `dW` of a layer merged by ESM or TSV-M, on the host, and what it was like.
pub(super) async fn merge_layer<B: Backend>(
    job: &Job<'_, B>,
    layer: &Layer,
    captured: &[Vec<Captured>],
    stream: u32,
    rounding: &mut [Rounding],
) -> Result<(Vec<f32>, Outcome), Error> {
    if is_untouched(job, layer) {
        return Ok((vec![0.0; layer.elements()], Outcome::default()));
    }
    let solver = Solver { accuracy: job.recipe.accuracy, seed: job.recipe.seed, stream };
    let (delta, mut outcome) = match (layer.role, job.esm_options()) {
        (Role::Esm, Some(options)) => merge_by_esm(job, layer, captured, options, solver, rounding).await?,
        _ => merge_by_tsv(job, layer, captured, solver, rounding).await?,
    };
    outcome.norm = norms(job.backend, &delta, &layer.name).await?.first().copied().unwrap_or(0.0);
    let values = job.backend.download(&delta).await.map_err(Error::device(&layer.name))?;
    match first_not_finite(Dtype::F32, bytemuck::cast_slice(&values)) {
        None => Ok((values, outcome)),
        Some((index, value)) => Err(Error::NotFinite { layer: layer.name.clone(), index, value }),
    }
}

/// Whether no expert changes the layer: task vectors lack the tensors that fine-tuning left alone.
fn is_untouched<B>(job: &Job<'_, B>, layer: &Layer) -> bool {
    let lacks = |expert: &Expert| layer.parts.iter().all(|part| expert.weights.get(&part.name).is_none());
    job.family.experts.iter().all(lacks)
}

/// ESM. The first half of the method is independent between tasks, so that they pass through it in groups.
async fn merge_by_esm<B: Backend>(
    job: &Job<'_, B>,
    layer: &Layer,
    captured: &[Vec<Captured>],
    options: &EsmOptions,
    solver: Solver,
    rounding: &mut [Rounding],
) -> Result<(B::Tensor, Outcome), Error> {
    let device = || Error::device(&layer.name);
    let mut parts = Vec::new();
    for group in task_groups(&job.family.experts, captured, layer, job.backend.max_tensor_bytes()) {
        let deltas = layer_deltas(job.backend, job.family, layer, group.clone(), rounding).await?;
        let inputs = layer_inputs(job.backend, job.family, captured, layer, group)?;
        let factors = esm::task_factors(job.backend, &deltas, &inputs, layer.rank, options, solver).await;
        parts.push(factors.map_err(device())?);
    }
    let factors = esm::join_factors(job.backend, parts).map_err(device())?;
    let merged = esm::merge_factors(job.backend, factors, options, solver).await.map_err(device())?;
    let outcome = Outcome {
        norm: 0.0,
        task_scales: merged.task_scales,
        energy_retention: merged.energy_retention,
        rank_deficient: merged.rank_deficient,
    };
    Ok((merged.delta, outcome))
}

/// The tasks in order, in groups whose calibration is of one kind and whose deltas, inputs and output shifts fit into
/// tensors of `limit` bytes.
pub(super) fn task_groups(
    experts: &[Expert],
    captured: &[Vec<Captured>],
    layer: &Layer,
    limit: u64,
) -> Vec<Range<usize>> {
    let known = |t: usize| statistic(&experts[t], &captured[t], layer);
    let tokens = |t: usize| known(t).map_or(0, |(_, tokens)| tokens);
    let longest = (0..experts.len()).map(tokens).max().unwrap_or(0);
    let largest = layer.elements().max(longest * layer.d_in.max(layer.d_out));
    let at_once = usize::try_from(limit / (4 * largest.max(1)) as u64).unwrap_or(usize::MAX).max(1);
    let kind = |t: usize| known(t).map(|(kind, _)| kind);
    let mut groups: Vec<Range<usize>> = Vec::new();
    for t in 0..experts.len() {
        match groups.last_mut() {
            Some(group) if group.len() < at_once && kind(group.start) == kind(t) => group.end = t + 1,
            _ => groups.push(t..t + 1),
        }
    }
    groups
}

/// TSV-M; its first half, too, is independent between tasks.
async fn merge_by_tsv<B: Backend>(
    job: &Job<'_, B>,
    layer: &Layer,
    captured: &[Vec<Captured>],
    solver: Solver,
    rounding: &mut [Rounding],
) -> Result<(B::Tensor, Outcome), Error> {
    let device = || Error::device(&layer.name);
    let mut parts = Vec::new();
    for group in task_groups(&job.family.experts, captured, layer, job.backend.max_tensor_bytes()) {
        let deltas = layer_deltas(job.backend, job.family, layer, group, rounding).await?;
        parts.push(tsv::task_triples(job.backend, &deltas, layer.rank, solver).await.map_err(device())?);
    }
    let merged = tsv::merge_triples(job.backend, parts, layer.mean_sigma, solver).await.map_err(device())?;
    let outcome = Outcome {
        norm: 0.0,
        task_scales: Vec::new(),
        energy_retention: merged.energy_retention,
        rank_deficient: merged.rank_deficient,
    };
    Ok((merged.delta, outcome))
}
