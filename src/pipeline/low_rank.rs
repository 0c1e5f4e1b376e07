//! One layer of `out: lora`. What decomposes differences is done in their core space, and no matrix of the layer's size is formed;
//! what looks at their entries sees the whole difference, of one layer at a time.

use super::Error;
use super::Job;
use super::decompose::{Outcome, is_calibrated, saw_too_few};
use super::inputs::member_inputs;
use super::members::members;
use super::reader::Reader;
use super::stacks::Stack;
use crate::backend::{self, Backend, Dtype, Op, Shape, Tensor};
use crate::calibration::Captured;
use crate::checkpoint::first_not_finite;
use crate::method::esd::Inputs;
use crate::method::low_rank::{Cores, Truncated, shared, truncated, truncated_whole};
use crate::method::{
    Decomposed, Matrices, MergedFactors, MergedLayer, Preset, Solver, arithmetic, elementwise, esm, linear,
    tsv,
};
use crate::plan::Role;
use crate::recipe::{AdapterOut, Compress, Method};

/// The factors of one layer of the output, on the host.
pub(super) struct Factors {
    /// `r x d_in`
    pub a: Vec<f32>,
    /// `B^T`, `r x d_out`.
    pub b: Vec<f32>,
    pub rank: usize,
    /// The share of the merged difference that they hold.
    pub energy: f64,
}

/// A merged difference.
enum Merged<T> {
    Factors(MergedFactors<T>),
    Whole(T, MergedLayer),
}

/// One layer, merged and brought to the rank of the output.
pub(super) async fn merged<B: Backend>(
    job: &Job<'_, B>,
    out: AdapterOut,
    reader: &mut Reader<'_>,
    stack: &Stack<'_>,
) -> Result<(Factors, Outcome), Error> {
    let (backend, layer) = (job.backend, stack.layer);
    let device = || Error::device(&layer.name);
    let solver = solver(job);
    let [b, a] = stack.read(backend, reader)?;
    let way = way(job, stack)?;
    let (norms, merged) = if way != Way::Whole {
        let mut cores = Cores::new(backend, &b, &a, solver.accuracy).await.map_err(device())?;
        drop((a, b));
        let norms = backend.frobenius_norms(&cores.k).map_err(device())?;
        let compressed = match out.compress {
            Compress::Ctm => Some(cores.compressed(backend, out.rank, solver).await.map_err(device())?),
            Compress::Truncate => None,
        };
        let merged = match (way, &compressed) {
            (Way::Entries, Some(compressed)) => {
                let method = job.streamed(&layer.name)?;
                compressed.elementwise(backend, &method).await.map_err(device())?
            }
            (Way::Shared, _) => by_table_in_cores(job, reader, stack, &cores).await?,
            (_, compressed) => {
                if let Some(compressed) = compressed {
                    cores = compressed.cores(backend).map_err(device())?;
                }
                merged_cores(job, out, reader, stack, &cores).await?
            }
        };
        (norms, Merged::Factors(merged))
    } else {
        let deltas = backend.matmul(&b, Op::Transpose, &a, Op::None).map_err(device())?;
        drop((a, b));
        let norms = backend.frobenius_norms(&deltas).map_err(device())?;
        let (delta, described) = merged_whole(job, reader, stack, deltas).await?;
        (norms, Merged::Whole(delta, described))
    };
    let r = out.rank.min(stack.d_out).min(stack.d_in);
    let (cut, described) = match merged {
        Merged::Factors(merged) => {
            let cut = truncated(backend, &merged, r, solver).await;
            (cut, merged.layers.into_iter().next().unwrap_or_default())
        }
        Merged::Whole(delta, described) => (truncated_whole(backend, &delta, r, solver).await, described),
    };
    let cut: Truncated<B::Tensor> = cut.map_err(device())?;
    let all = backend.download_all([&cut.a, &cut.b, &cut.norm, &norms]).await;
    let [a, b, norm, norms] = all.map_err(device())?;
    for values in [&a, &b, &norm] {
        if let Some((index, value)) = first_not_finite(Dtype::F32, bytemuck::cast_slice(values)) {
            let what = format!("gave {value} at element {index} of the merged factors");
            let cause = "the factors or inputs of this layer are too large for float32; look at the adapters and their calibration";
            return Err(Error::NotFinite { layer: layer.name.clone(), what, cause: cause.to_owned() });
        }
    }
    let outcome = Outcome {
        norm: norm.first().map_or(0.0, |&norm| norm.into()),
        changed: norms.iter().any(|&norm| norm > 0.0),
        task_scales: described.task_scales,
        energy_retention: described.energy_retention,
        rank_deficient: described.rank_deficient,
        too_few_tokens: saw_too_few(job, layer, &nothing_captured(job)),
    };
    Ok((Factors { a, b, rank: r, energy: cut.energy_retention }, outcome))
}

/// How a layer is merged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By a method that has a form on cores.
    Cores,
    /// By a method for matrices that sees them through one basis of all outputs.
    Shared,
    /// Entry by entry of compressed cores.
    Entries,
    /// As whole matrices.
    Whole,
}

fn way<B>(job: &Job<'_, B>, stack: &Stack<'_>) -> Result<Way, Error> {
    let (layer, method) = (stack.layer, &job.recipe.method);
    if layer.role == Role::Sum {
        let is_sum = |name: &str| [linear::METHOD.name, arithmetic::METHOD.name].contains(&name);
        let compressed = job.recipe.adapter.is_some_and(|out| out.compress == Compress::Ctm);
        return Ok(match method.elementwise() {
            Some(_) if compressed => Way::Entries,
            Some(tabled) if !is_sum(tabled.description.name) => Way::Whole,
            _ => Way::Cores,
        });
    }
    if method.calibrate().is_some() {
        return Ok(Way::Whole);
    }
    Ok(match layer.role {
        Role::Spectral if !saw_too_few(job, layer, &nothing_captured(job)) => match decomposed(job, stack)? {
            Some(method) if method.turns_with_outputs() => Way::Shared,
            _ => Way::Whole,
        },
        _ => Way::Cores,
    })
}

/// Whether a layer is merged with a look at the base's weights.
pub(super) fn wants_base<B>(job: &Job<'_, B>, stack: &Stack<'_>) -> bool {
    let spectral = || match decomposed(job, stack) {
        Ok(Some(method)) => method.wants_base(),
        _ => true,
    };
    match (way(job, stack), stack.layer.role) {
        (Ok(Way::Whole), Role::Sum) => true,
        (Ok(Way::Whole), Role::Spectral) => {
            !saw_too_few(job, stack.layer, &nothing_captured(job)) && spectral()
        }
        _ => false,
    }
}

/// The method for matrices of the recipe, for a layer.
fn decomposed<B>(job: &Job<'_, B>, stack: &Stack<'_>) -> Result<Option<Decomposed>, Error> {
    let Some(tabled) = job.recipe.method.tabled() else { return Ok(None) };
    let name = &stack.layer.name;
    let values = job.recipe.values(tabled, name, job.plan.place(name));
    job.recipe.decomposed(&values).map_err(|reason| Error::Parameters { tensor: name.clone(), reason })
}

/// One layer by the method that the plan has for it. Compressed differences are matrices of the output's rank, of which every task
/// gets its share.
async fn merged_cores<B: Backend>(
    job: &Job<'_, B>,
    out: AdapterOut,
    reader: &mut Reader<'_>,
    stack: &Stack<'_>,
    cores: &Cores<B::Tensor>,
) -> Result<MergedFactors<B::Tensor>, Error> {
    let Job { backend, recipe, family, .. } = *job;
    let (layer, solver, tasks) = (stack.layer, solver(job), family.experts.len());
    let compressed = (out.compress == Compress::Ctm).then_some(out.rank);
    let captured = nothing_captured(job);
    let few = saw_too_few(job, layer, &captured);
    let merged = match (layer.role, &recipe.method) {
        (Role::Esm, Method::Esm(esm)) if !few => {
            let inputs = member_inputs(backend, reader, family, &captured, &members(&[layer], tasks))?;
            let budget = compressed.map_or(layer.rank, |r| esm.rank.of(r, tasks));
            cores.esm(backend, &inputs, budget, &esm.options, solver).await
        }
        (Role::TsvM | Role::Esm | Role::Spectral, _) => {
            let (rows, columns) = compressed.map_or((stack.d_out, stack.d_in), |r| (r, r));
            cores.tsv_m(backend, tsv::rank_budget(rows, columns, tasks), mean_sigma(job, stack), solver).await
        }
        _ => cores.sum(backend, &coefficients(job, stack)),
    };
    merged.map_err(Error::device(&layer.name))
}

/// A method for matrices, of the differences `U K_t` as of the `K_t`.
async fn by_table_in_cores<B: Backend>(
    job: &Job<'_, B>,
    reader: &mut Reader<'_>,
    stack: &Stack<'_>,
    cores: &Cores<B::Tensor>,
) -> Result<MergedFactors<B::Tensor>, Error> {
    let backend = job.backend;
    let device = || Error::device(&stack.layer.name);
    let (u, k) = shared(backend, cores, job.recipe.accuracy).await.map_err(device())?;
    let inputs = inputs(job, reader, stack)?;
    let each = members_of(backend, &k).map_err(device())?;
    let Some(method) = decomposed(job, stack)? else {
        let what = "a layer in one basis without a method for it".to_owned();
        return Err(device()(backend::Error::Internal(what)));
    };
    let matrices = Matrices { deltas: &each, inputs: &inputs, base: None };
    let a = method.merge(backend, &matrices, solver(job)).await.map_err(device())?;
    Ok(MergedFactors { b: u, a, layers: vec![MergedLayer::default()] })
}

/// One layer as whole matrices, `T x d_out x d_in`, with the last step of the recipe.
async fn merged_whole<B: Backend>(
    job: &Job<'_, B>,
    reader: &mut Reader<'_>,
    stack: &Stack<'_>,
    deltas: B::Tensor,
) -> Result<(B::Tensor, MergedLayer), Error> {
    let Job { backend, recipe, family, .. } = *job;
    let (layer, solver, tasks) = (stack.layer, solver(job), family.experts.len());
    let device = || Error::device(&layer.name);
    let few = saw_too_few(job, layer, &nothing_captured(job));
    let last_step = recipe.method.calibrate().filter(|_| layer.role != Role::Sum);
    // the last step looks at the differences again; nothing else keeps them
    let kept = |deltas: &B::Tensor| match last_step {
        Some(_) => members_of(backend, deltas).map_err(device()),
        None => Ok(Vec::new()),
    };
    let (merged, described, each) = match (layer.role, &recipe.method) {
        (Role::Esm, Method::Esm(esm)) if !few => {
            let inputs =
                member_inputs(backend, reader, family, &nothing_captured(job), &members(&[layer], tasks))?;
            let factors = esm::task_factors(backend, &deltas, &inputs, layer.rank, &esm.options, solver)
                .await
                .map_err(device())?;
            let merged =
                esm::merge_factors(backend, factors, tasks, &esm.options, solver).await.map_err(device())?;
            (merged.deltas, merged.layers.into_iter().next(), kept(&deltas)?)
        }
        (role, _) if few || matches!(role, Role::Esm | Role::TsvM) => {
            let budget = tsv::rank_budget(stack.d_out, stack.d_in, tasks);
            let triples = tsv::task_triples(backend, &deltas, budget, solver).await.map_err(device())?;
            let merged = tsv::merge_triples(backend, vec![triples], tasks, mean_sigma(job, stack), solver)
                .await
                .map_err(device())?;
            (merged.deltas, merged.layers.into_iter().next(), kept(&deltas)?)
        }
        _ => {
            let inputs = inputs(job, reader, stack)?;
            let base = if wants_base(job, stack) { Some(stack.base(job, reader)?) } else { None };
            let method = if layer.role == Role::Spectral { decomposed(job, stack)? } else { None };
            let (merged, each) = match (method, base) {
                (Some(method), base) => {
                    let each = members_of(backend, &deltas).map_err(device())?;
                    drop(deltas);
                    let matrices = Matrices { deltas: &each, inputs: &inputs, base: base.as_ref() };
                    (method.merge(backend, &matrices, solver).await, each)
                }
                (None, Some(base)) => {
                    let each = kept(&deltas)?;
                    (elementwise::of_batch(backend, &job.streamed(&layer.name)?, base, deltas).await, each)
                }
                (None, None) => {
                    let what = "a method without the base it wants".to_owned();
                    (Err(backend::Error::Internal(what)), Vec::new())
                }
            };
            (merged.map_err(device())?, None, each)
        }
    };
    let merged = match last_step {
        Some(step) => step.apply(backend, merged, &each, solver).await.map_err(device())?,
        None => merged,
    };
    Ok((merged, described.unwrap_or_default()))
}

/// What is known of a layer's inputs in every task, where the method looks at them.
fn inputs<B: Backend>(
    job: &Job<'_, B>,
    reader: &mut Reader<'_>,
    stack: &Stack<'_>,
) -> Result<Vec<Inputs<B::Tensor>>, Error> {
    let (backend, tasks) = (job.backend, job.family.experts.len());
    if !is_calibrated(job, stack.layer.role) {
        return Ok(Vec::new());
    }
    let (members, captured) = (members(&[stack.layer], tasks), nothing_captured(job));
    members.chunks(1).map(|one| member_inputs(backend, reader, job.family, &captured, one)).collect()
}

/// The matrices of a batch.
fn members_of<B: Backend>(backend: &B, batch: &B::Tensor) -> backend::Result<Vec<B::Tensor>> {
    let Shape { batch: count, rows, cols } = batch.shape();
    (0..count).map(|t| backend.slice(batch, t..t + 1, 0..rows, 0..cols)).collect()
}

/// Whether TSV-M multiplies by the mean singular values, also where it stands in for ESM.
fn mean_sigma<B>(job: &Job<'_, B>, stack: &Stack<'_>) -> bool {
    match stack.layer.role {
        Role::Esm => job.esm_preset().is_some_and(Preset::tsv_mean_sigma),
        _ => stack.layer.mean_sigma,
    }
}

/// `c_t` of `dW = sum_t c_t dW_t`: of the method where it is a weighted sum, of the average for any other.
fn coefficients<B>(job: &Job<'_, B>, stack: &Stack<'_>) -> Vec<f64> {
    let tasks = job.family.experts.len();
    let average = || vec![1.0 / tasks.max(1) as f64; tasks];
    let Some(tabled) = job.recipe.method.elementwise() else { return average() };
    let name = &stack.layer.name;
    let values = job.recipe.values(tabled, name, job.plan.place(name));
    let weights = values.of_models("weight");
    let lambda = values.number("lambda");
    let normalized = values.is_on("normalize").then(|| arithmetic::average_coefficients(&weights)).flatten();
    normalized.unwrap_or(weights).into_iter().map(|weight| lambda * weight).collect()
}

fn solver<B>(job: &Job<'_, B>) -> Solver {
    Solver { accuracy: job.recipe.accuracy, seed: job.recipe.seed }
}

/// Calibration comes from files here.
fn nothing_captured<B>(job: &Job<'_, B>) -> Vec<Vec<Captured>> {
    vec![Vec::new(); job.family.experts.len()]
}
