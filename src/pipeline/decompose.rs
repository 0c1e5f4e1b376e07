//! How layers are decomposed and merged, a batch of one shape at a time.

use super::inputs::{input_requests, member_inputs, statistic};
use super::members::{Member, cut, members};
use super::reader::{Reader, Request};
use super::weights::{layer_weights, member_deltas, member_requests};
use super::{Error, Job, not_finite};
use crate::backend::{self, Backend, Dtype, Shape, Tensor};
use crate::calibration::Captured;
use crate::checkpoint::first_not_finite;
use crate::method::{
    EsmOptions, Matrices, MergedLayer, MergedLayers, Preset, Solver, elementwise, esm, join_batches, tsv,
};
use crate::plan::{Expert, Layer, Role};
use serde::{Deserialize, Serialize};

/// What is known of a layer once it is merged.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// `||dW||_F`
    pub norm: f64,
    /// Whether any expert differs from the base here.
    pub changed: bool,
    /// `s_t`; empty where tasks are not scaled.
    pub task_scales: Vec<f64>,
    /// Per task.
    pub energy_retention: Vec<f64>,
    /// Whether a concatenation was rank-deficient.
    pub rank_deficient: bool,
    /// Whether it was merged by TSV-M, because an expert of a mixture saw fewer than [`FEWEST_TOKENS`].
    pub too_few_tokens: bool,
}

/// Tokens that an expert of a mixture must have seen, in every model, for its weights to be merged by ESM: what a handful of tokens
/// shows is no subspace of the task's. The name of the rule is "few tokens".
pub(super) const FEWEST_TOKENS: usize = 16;

/// Merged layers on the host.
pub(super) struct OnHost {
    /// `dW` of all, one after the other.
    pub values: Vec<f32>,
    pub outcomes: Vec<Outcome>,
}

impl OnHost {
    /// `dW`, layer by layer.
    fn deltas(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks(self.size())
    }

    /// Values of a layer.
    fn size(&self) -> usize {
        (self.values.len() / self.outcomes.len().max(1)).max(1)
    }

    /// Puts layers in their places among so many.
    fn take(&mut self, places: &[usize], layers: usize, some: OnHost) {
        let size = some.size();
        self.values.resize(layers * size, 0.0);
        self.outcomes.resize(layers, Outcome::default());
        for ((&place, delta), outcome) in places.iter().zip(some.values.chunks(size)).zip(some.outcomes) {
            self.values[place * size..][..size].copy_from_slice(delta);
            self.outcomes[place] = outcome;
        }
    }
}

/// Merges layers of one shape by ESM or TSV-M, in one batch.
pub(super) async fn merge_layers<B: Backend>(
    job: &Job<'_, B>,
    layers: &[&Layer],
    captured: &[Vec<Captured>],
    reader: &mut Reader<'_>,
) -> Result<OnHost, Error> {
    if layers.iter().all(|layer| is_untouched(job, layer)) {
        let elements = layers.iter().map(|layer| layer.elements()).sum();
        return Ok(OnHost { values: vec![0.0; elements], outcomes: vec![Outcome::default(); layers.len()] });
    }
    let (few, enough) = (0..layers.len()).partition(|&i| saw_too_few(job, layers[i], captured));
    let mut whole = OnHost { values: Vec::new(), outcomes: Vec::new() };
    for (places, role) in [(enough, None), (few, Some(Role::TsvM))] {
        let places: Vec<usize> = places;
        if places.is_empty() {
            continue;
        }
        let some: Vec<&Layer> = places.iter().map(|&i| layers[i]).collect();
        let role = role.unwrap_or(some[0].role);
        let merged = match (Batch { job, layers: &some, captured, role }).merge(reader).await {
            Ok(merged) => all_finite(job, &some, merged).await?,
            Err(error) => return Err(not_finite::explained(job, &some, error).await),
        };
        if places.len() == layers.len() {
            return Ok(merged);
        }
        whole.take(&places, layers.len(), merged);
    }
    Ok(whole)
}

/// Whether a layer is of an expert in a mixture that saw too few tokens in one of the models that are calibrated.
pub(super) fn saw_too_few<B>(job: &Job<'_, B>, layer: &Layer, captured: &[Vec<Captured>]) -> bool {
    let few = |(expert, captured): (&Expert, &Vec<Captured>)| {
        let calibrated = expert.calibration.is_some() || expert.proxies.is_some();
        calibrated && statistic(expert, captured, layer).is_none_or(|(_, tokens)| tokens < FEWEST_TOKENS)
    };
    is_calibrated(job, layer.role) && layer.is_of_expert() && job.family.experts.iter().zip(captured).any(few)
}

/// What [`merge_layers`] will read, as far as it is known before experts have run.
pub(super) fn requests<B: Backend>(job: &Job<'_, B>, layers: &[&Layer]) -> Vec<Request> {
    if layers.iter().all(|layer| is_untouched(job, layer)) {
        return Vec::new();
    }
    let experts = &job.family.experts;
    let (members, captured) = (members(layers, experts.len()), vec![Vec::new(); experts.len()]);
    let of_group = |group: &[Member<'_>]| {
        let seen = group.iter().all(|member| is_calibrated(job, member.layer.role));
        let inputs = if seen { input_requests(job.family, group) } else { Vec::new() };
        member_requests(job.family, group).into_iter().chain(inputs).collect::<Vec<_>>()
    };
    let groups = cut(&members, experts, &captured, job.backend.max_tensor_bytes());
    groups.into_iter().flat_map(of_group).collect()
}

async fn all_finite<B: Backend>(
    job: &Job<'_, B>,
    layers: &[&Layer],
    merged: OnHost,
) -> Result<OnHost, Error> {
    for (layer, delta) in layers.iter().zip(merged.deltas()) {
        if let Some((index, value)) = first_not_finite(Dtype::F32, bytemuck::cast_slice(delta)) {
            return Err(not_finite::at(job, layer, (index, value)).await);
        }
    }
    Ok(merged)
}

/// Whether no expert changes the layer: task vectors lack the tensors that fine-tuning left alone.
pub(super) fn is_untouched<B>(job: &Job<'_, B>, layer: &Layer) -> bool {
    let lacks = |expert: &Expert| layer.parts.iter().all(|part| !expert.changes(&part.name));
    job.family.experts.iter().all(lacks)
}

/// Whether the layers of a role are merged with a look at their inputs.
pub(super) fn is_calibrated<B>(job: &Job<'_, B>, role: Role) -> bool {
    role == Role::Esm || role == Role::Spectral && job.recipe.method.description().is_calibrated()
}

/// Merged layers on the device, and `||dW_t||_F` of the experts, `LT x 1 x 1`.
type Merged<B> = Result<(MergedLayers<<B as Backend>::Tensor>, <B as Backend>::Tensor), Error>;

/// Layers of one shape, and what is known of their inputs.
#[derive(Clone, Copy)]
struct Batch<'a, B> {
    job: &'a Job<'a, B>,
    layers: &'a [&'a Layer],
    captured: &'a [Vec<Captured>],
    /// By which method; the layers' own, but where too little is known for it.
    role: Role,
}

impl<B: Backend> Batch<'_, B> {
    /// Merges, and reads back.
    async fn merge(&self, reader: &mut Reader<'_>) -> Result<OnHost, Error> {
        let backend = self.job.backend;
        let tasks = self.job.family.experts.len();
        let (merged, expert_norms) = match (self.role, self.job.esm_options()) {
            (Role::Esm, Some(options)) => self.by_esm(options, reader).await?,
            (Role::Spectral, _) => self.by_table(reader).await?,
            _ => self.by_tsv(reader).await?,
        };
        let norms = backend.frobenius_norms(&merged.deltas).map_err(self.failed())?;
        let deltas = match self.layers.first().is_some_and(|layer| layer.transposed) {
            true => backend.transpose(&merged.deltas).map_err(self.failed())?,
            false => merged.deltas,
        };
        let all = backend.download_all([&deltas, &norms, &expert_norms]).await;
        let [values, norms, expert_norms] = all.map_err(self.failed())?;
        for (i, &norm) in expert_norms.iter().enumerate() {
            reader.rounding[i % tasks].delta(norm.into());
        }
        let of_experts = expert_norms.chunks(tasks.max(1));
        let outcome = |((layer, norm), of_experts): ((MergedLayer, f32), &[f32])| Outcome {
            norm: norm.into(),
            changed: of_experts.iter().any(|&norm| norm > 0.0),
            task_scales: layer.task_scales,
            energy_retention: layer.energy_retention,
            rank_deficient: layer.rank_deficient,
            too_few_tokens: self.layers.first().is_some_and(|layer| layer.role != self.role),
        };
        let outcomes = merged.layers.into_iter().zip(norms).zip(of_experts).map(outcome).collect();
        Ok(OnHost { values, outcomes })
    }

    /// ESM.
    async fn by_esm(&self, options: &EsmOptions, reader: &mut Reader<'_>) -> Merged<B> {
        let Job { backend, family, .. } = *self.job;
        let half = async |deltas: &B::Tensor, members: &[Member<'_>], reader: &mut Reader<'_>| {
            let inputs = member_inputs(backend, reader, family, self.captured, members)?;
            let factors =
                esm::task_factors(backend, deltas, &inputs, self.rank(), options, self.solver()).await;
            factors.map_err(self.failed())
        };
        let (parts, norms) = self.first_half(reader, half).await?;
        let factors = esm::join_factors(backend, parts).map_err(self.failed())?;
        let merged = esm::merge_factors(backend, factors, family.experts.len(), options, self.solver()).await;
        Ok((self.mended(merged.map_err(self.failed())?, reader).await?, norms))
    }

    /// TSV-M.
    async fn by_tsv(&self, reader: &mut Reader<'_>) -> Merged<B> {
        let Job { backend, family, .. } = *self.job;
        let half = async |deltas: &B::Tensor, _: &[Member<'_>], _: &mut Reader<'_>| {
            let triples = tsv::task_triples(backend, deltas, self.rank(), self.solver()).await;
            triples.map_err(self.failed())
        };
        let (parts, norms) = self.first_half(reader, half).await?;
        let mean_sigma = self.layers.first().is_some_and(|layer| match layer.role {
            Role::TsvM => layer.mean_sigma,
            _ => self.job.esm_preset().is_some_and(Preset::tsv_mean_sigma),
        });
        let merged =
            tsv::merge_triples(backend, parts, family.experts.len(), mean_sigma, self.solver()).await;
        Ok((self.mended(merged.map_err(self.failed())?, reader).await?, norms))
    }

    /// The last step after ESM and TSV-M, a layer at a time: what they have made of the experts' differences holds no longer than
    /// that, so that these are read once more.
    async fn mended(
        &self,
        merged: MergedLayers<B::Tensor>,
        reader: &mut Reader<'_>,
    ) -> Result<MergedLayers<B::Tensor>, Error> {
        let Job { backend, family, recipe, .. } = *self.job;
        let Some(step) = recipe.method.calibrate() else { return Ok(merged) };
        let counted = reader.rounding.clone(); // what is read again is not counted again
        let Shape { rows, cols, .. } = merged.deltas.shape();
        let mut mended = Vec::new();
        for (l, layer) in self.layers.iter().enumerate() {
            let members = members(&[*layer], family.experts.len());
            let mut deltas = Vec::new();
            for group in cut(&members, &family.experts, self.captured, backend.max_tensor_bytes()) {
                let some = member_deltas(backend, reader, family, group)?;
                let own = |t: usize| backend.slice(&some, t..t + 1, 0..rows, 0..cols);
                deltas.extend(
                    (0..group.len()).map(own).collect::<backend::Result<Vec<_>>>().map_err(self.failed())?,
                );
            }
            let delta = backend.slice(&merged.deltas, l..l + 1, 0..rows, 0..cols).map_err(self.failed())?;
            mended.push(step.apply(backend, delta, &deltas, self.solver()).await.map_err(self.failed())?);
        }
        reader.rounding = counted;
        let deltas = join_batches(backend, mended).map_err(self.failed())?;
        Ok(MergedLayers { deltas, ..merged })
    }

    /// A method of the table, layer by layer, and its last step.
    async fn by_table(&self, reader: &mut Reader<'_>) -> Merged<B> {
        let Job { backend, recipe, family, plan, .. } = *self.job;
        let calibrated = is_calibrated(self.job, Role::Spectral);
        let half = async |deltas: &B::Tensor, members: &[Member<'_>], reader: &mut Reader<'_>| {
            let inputs = match calibrated {
                true => Some(member_inputs(backend, reader, family, self.captured, members)?),
                false => None,
            };
            let Shape { rows, cols, .. } = deltas.shape();
            let own = |t: usize| {
                let inputs = inputs.as_ref().map(|inputs| inputs.member(backend, t)).transpose()?;
                Ok((backend.slice(deltas, t..t + 1, 0..rows, 0..cols)?, inputs))
            };
            (0..members.len()).map(own).collect::<backend::Result<Vec<_>>>().map_err(self.failed())
        };
        let (parts, norms) = self.first_half(reader, half).await?;
        let (deltas, inputs): (Vec<_>, Vec<_>) = parts.into_iter().flatten().unzip();
        let inputs: Vec<_> = inputs.into_iter().flatten().collect();
        let Some(tabled) = recipe.method.tabled() else {
            return Err(self.failed()(backend::Error::Internal("a method without parameters".to_owned())));
        };
        let tasks = family.experts.len();
        let mut merged = Vec::new();
        for (l, layer) in self.layers.iter().enumerate() {
            let values = recipe.values(tabled, &layer.name, plan.place(&layer.name));
            let wrong = |reason| Error::Parameters { tensor: layer.name.clone(), reason };
            let own = l * tasks..(l + 1) * tasks;
            let deltas = &deltas[own.clone()];
            let inputs = inputs.get(own).unwrap_or(&[]);
            let delta = match recipe.decomposed(&values).map_err(wrong)? {
                Some(method) => {
                    let base = match method.wants_base() {
                        true => Some(layer_weights(backend, reader, &family.base, layer)?),
                        false => None,
                    };
                    let matrices = Matrices { deltas, inputs, base: base.as_ref() };
                    method.merge(backend, &matrices, self.solver()).await
                }
                None => {
                    let base = layer_weights(backend, reader, &family.base, layer)?;
                    let method = self.job.streamed(&layer.name)?;
                    elementwise::of_matrices(backend, &method, base, deltas).await
                }
            };
            let delta = delta.map_err(self.failed())?;
            merged.push(match tabled.calibrate {
                Some(step) => {
                    step.apply(backend, delta, deltas, self.solver()).await.map_err(self.failed())?
                }
                None => delta,
            });
        }
        let layers = vec![MergedLayer::default(); merged.len()];
        Ok((MergedLayers { deltas: join_batches(backend, merged).map_err(self.failed())?, layers }, norms))
    }

    /// The half of a method that is independent between tasks, so that they pass through it in groups; and the norms of all
    /// deltas.
    async fn first_half<P>(
        &self,
        reader: &mut Reader<'_>,
        half: impl AsyncFn(&B::Tensor, &[Member<'_>], &mut Reader<'_>) -> Result<P, Error>,
    ) -> Result<(Vec<P>, B::Tensor), Error> {
        let Job { backend, family, .. } = *self.job;
        let members = members(self.layers, family.experts.len());
        let (mut parts, mut norms) = (Vec::new(), Vec::new());
        for group in cut(&members, &family.experts, self.captured, backend.max_tensor_bytes()) {
            let deltas = member_deltas(backend, reader, family, group)?;
            parts.push(half(&deltas, group, reader).await?);
            norms.push(backend.frobenius_norms(&deltas).map_err(self.failed())?);
        }
        Ok((parts, join_batches(backend, norms).map_err(self.failed())?))
    }

    fn rank(&self) -> usize {
        let tasks = self.job.family.experts.len();
        self.layers.first().map_or(0, |layer| match layer.role == self.role {
            true => layer.rank,
            false => tsv::rank_budget(layer.d_out, layer.d_in, tasks),
        })
    }

    fn solver(&self) -> Solver {
        let recipe = self.job.recipe;
        Solver { accuracy: recipe.accuracy, seed: recipe.seed }
    }

    /// An error of the device, with the layers it was at work on.
    fn failed(&self) -> impl FnOnce(crate::backend::Error) -> Error {
        let first = self.layers.first().map_or("", |layer| &layer.name);
        Error::device_on_batch(first, self.layers.len().saturating_sub(1))
    }
}
