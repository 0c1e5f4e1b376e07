//! First half of a merge: the layers that are decomposed. Their deltas are spilled to a file, because inter-layer
//! scaling compares the norms of all of them before the first can be written.

use super::inputs::member_inputs;
use super::members::{cut, members};
use super::rounding::Rounding;
use super::weights::member_deltas;
use super::{Error, Job};
use crate::backend::{Backend, Dtype};
use crate::calibration::Captured;
use crate::checkpoint::first_not_finite;
use crate::linalg::Convergence;
use crate::method::{EsmOptions, Solver, esm, join_batches, tsv};
use crate::plan::{Expert, Layer, Role};

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

/// Merged layers on the host.
pub(super) struct MergedLayers {
    /// `dW` of each.
    pub deltas: Vec<Vec<f32>>,
    pub outcomes: Vec<Outcome>,
}

/// Merges layers of one shape by ESM or TSV-M, in one batch.
pub(super) async fn merge_layers<B: Backend>(
    job: &Job<'_, B>,
    layers: &[&Layer],
    captured: &[Vec<Captured>],
    rounding: &mut [Rounding],
) -> Result<MergedLayers, Error> {
    if layers.iter().all(|layer| is_untouched(job, layer)) {
        let deltas = layers.iter().map(|layer| vec![0.0; layer.elements()]).collect();
        return Ok(MergedLayers { deltas, outcomes: vec![Outcome::default(); layers.len()] });
    }
    let batch = Batch { job, layers, captured, convergence: Convergence::Deferred };
    let (mut merged, converged) = batch.merge(rounding).await?;
    for l in (0..layers.len()).filter(|&l| !converged[l]) {
        let mut uncounted = vec![Rounding::default(); rounding.len()]; // these weights were counted
        let alone = Batch { layers: &layers[l..=l], convergence: Convergence::Checked, ..batch };
        let (again, _) = alone.merge(&mut uncounted).await?;
        merged.deltas.splice(l..=l, again.deltas);
        merged.outcomes.splice(l..=l, again.outcomes);
    }
    for (layer, delta) in layers.iter().zip(&merged.deltas) {
        if let Some((index, value)) = first_not_finite(Dtype::F32, bytemuck::cast_slice(delta)) {
            return Err(Error::NotFinite { layer: layer.name.clone(), index, value });
        }
    }
    Ok(merged)
}

/// Whether no expert changes the layer: task vectors lack the tensors that fine-tuning left alone.
pub(super) fn is_untouched<B>(job: &Job<'_, B>, layer: &Layer) -> bool {
    let lacks = |expert: &Expert| layer.parts.iter().all(|part| expert.weights.get(&part.name).is_none());
    job.family.experts.iter().all(lacks)
}

/// Layers of one shape, and what is known of their inputs.
#[derive(Clone, Copy)]
struct Batch<'a, B> {
    job: &'a Job<'a, B>,
    layers: &'a [&'a Layer],
    captured: &'a [Vec<Captured>],
    convergence: Convergence,
}

/// Merged layers on the device.
struct OnDevice<T> {
    /// `L x d_out x d_in`
    deltas: T,
    /// `||dW_t||_F` of the experts, `LT x 1 x 1`.
    expert_norms: T,
    outcomes: Vec<Outcome>,
    /// Whether the subspaces of a layer were found.
    converged: Vec<bool>,
}

impl<B: Backend> Batch<'_, B> {
    /// Merges, reads back, and says of every layer whether its subspaces were found.
    async fn merge(&self, rounding: &mut [Rounding]) -> Result<(MergedLayers, Vec<bool>), Error> {
        let backend = self.job.backend;
        let merged = match (self.layers.first().map(|layer| layer.role), self.job.esm_options()) {
            (Some(Role::Esm), Some(options)) => self.by_esm(options, rounding).await?,
            _ => self.by_tsv(rounding).await?,
        };
        let OnDevice { deltas, expert_norms, mut outcomes, converged } = merged;
        let norms = backend.frobenius_norms(&deltas).map_err(self.failed())?;
        let all = backend.download_all([&deltas, &norms, &expert_norms]).await;
        let [deltas, norms, expert_norms] = all.map_err(self.failed())?;
        for (i, norm) in expert_norms.into_iter().enumerate() {
            rounding[i % self.job.family.experts.len()].delta(norm.into());
        }
        for (outcome, norm) in outcomes.iter_mut().zip(norms) {
            outcome.norm = norm.into();
        }
        let size = (deltas.len() / outcomes.len().max(1)).max(1);
        Ok((MergedLayers { deltas: deltas.chunks(size).map(<[f32]>::to_vec).collect(), outcomes }, converged))
    }

    /// ESM. The first half of the method is independent between tasks, so that they pass through it in groups.
    async fn by_esm(
        &self,
        options: &EsmOptions,
        rounding: &mut [Rounding],
    ) -> Result<OnDevice<B::Tensor>, Error> {
        let Batch { job: &Job { backend, family, .. }, captured, .. } = *self;
        let members = members(self.layers, family.experts.len());
        let (mut parts, mut norms) = (Vec::new(), Vec::new());
        for group in cut(&members, &family.experts, captured, backend.max_tensor_bytes()) {
            let deltas = member_deltas(backend, family, group, rounding)?;
            let inputs = member_inputs(backend, family, captured, group)?;
            let factors =
                esm::task_factors(backend, &deltas, &inputs, self.rank(), options, self.solver()).await;
            parts.push(factors.map_err(self.failed())?);
            norms.push(backend.frobenius_norms(&deltas).map_err(self.failed())?);
        }
        let factors = esm::join_factors(backend, parts).map_err(self.failed())?;
        let merged = esm::merge_factors(backend, factors, family.experts.len(), options, self.solver()).await;
        let merged = merged.map_err(self.failed())?;
        let outcome = |layer: &esm::EsmLayer| Outcome {
            norm: 0.0,
            task_scales: layer.task_scales.clone(),
            energy_retention: layer.energy_retention.clone(),
            rank_deficient: layer.rank_deficient,
        };
        Ok(OnDevice {
            deltas: merged.deltas,
            expert_norms: join_batches(backend, norms).map_err(self.failed())?,
            outcomes: merged.layers.iter().map(outcome).collect(),
            converged: merged.layers.iter().map(|layer| layer.converged).collect(),
        })
    }

    /// TSV-M; its first half, too, is independent between tasks.
    async fn by_tsv(&self, rounding: &mut [Rounding]) -> Result<OnDevice<B::Tensor>, Error> {
        let Batch { job: &Job { backend, family, .. }, captured, .. } = *self;
        let members = members(self.layers, family.experts.len());
        let mean_sigma = self.layers.first().is_some_and(|layer| layer.mean_sigma);
        let (mut parts, mut norms) = (Vec::new(), Vec::new());
        for group in cut(&members, &family.experts, captured, backend.max_tensor_bytes()) {
            let deltas = member_deltas(backend, family, group, rounding)?;
            let triples = tsv::task_triples(backend, &deltas, self.rank(), self.solver()).await;
            parts.push(triples.map_err(self.failed())?);
            norms.push(backend.frobenius_norms(&deltas).map_err(self.failed())?);
        }
        let merged =
            tsv::merge_triples(backend, parts, family.experts.len(), mean_sigma, self.solver()).await;
        let merged = merged.map_err(self.failed())?;
        let outcome = |layer: &tsv::TsvLayer| Outcome {
            norm: 0.0,
            task_scales: Vec::new(),
            energy_retention: layer.energy_retention.clone(),
            rank_deficient: layer.rank_deficient,
        };
        Ok(OnDevice {
            deltas: merged.deltas,
            expert_norms: join_batches(backend, norms).map_err(self.failed())?,
            outcomes: merged.layers.iter().map(outcome).collect(),
            converged: merged.layers.iter().map(|layer| layer.converged).collect(),
        })
    }

    fn rank(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.rank)
    }

    fn solver(&self) -> Solver {
        let recipe = self.job.recipe;
        Solver { accuracy: recipe.accuracy, seed: recipe.seed, convergence: self.convergence }
    }

    /// An error of the device, with the layers it was at work on.
    fn failed(&self) -> impl FnOnce(crate::backend::Error) -> Error {
        let first = self.layers.first().map_or("", |layer| &layer.name);
        Error::device_on_batch(first, self.layers.len().saturating_sub(1))
    }
}
