//! What experts are like before they are merged: how much of a layer's change a few directions hold, and how far experts share
//! them. Nothing is written.

use super::capture::{Captures, Sources};
use super::decompose::is_untouched;
use super::faults::{Faults, try_again};
use super::flow::{Flow, Limits};
use super::inputs::{input_requests, member_inputs};
use super::members::{cut, members};
use super::reader::{Reader, Request};
use super::spill::layer_bytes;
use super::store::Store;
use super::weights::{layer_requests, layer_weights, member_deltas, member_requests};
use super::{Error, Job, Progress};
use crate::backend::layers::Layers;
use crate::backend::{self, Backend, Op, Shape, Tensor};
use crate::calibration::Captured;
use crate::host::Instant;
use crate::method::esd::{EssentialSubspace, Inputs, essential_subspace, output_shift, rank_budget};
use crate::method::{Decomposition, Solver, join_batches};
use crate::plan::{Family, Layer, Plan, Role};
use crate::recipe::Recipe;
use crate::report::{InspectedLayer, Inspection};
use std::collections::BTreeMap;

/// Looks at every layer of a recipe that would be decomposed.
///
/// # Errors
/// As a merge has them; and if the method decomposes no layer.
pub async fn inspect<B: Layers>(
    backend: &B,
    (recipe, family, plan): (&Recipe, &Family, &Plan),
    max_memory: u64,
    progress: &mut dyn Progress,
) -> Result<Inspection, Error> {
    let (started, faults) = (Instant::now(), Faults::default());
    let job = Job { backend, recipe, family, plan, of_model: None, faults: &faults };
    let is_decomposed = |layer: &&Layer| matches!(layer.role, Role::Esm | Role::TsvM | Role::Spectral);
    let layers: Vec<&Layer> =
        plan.layers.iter().filter(is_decomposed).filter(|l| !is_untouched(&job, l)).collect();
    if layers.is_empty() {
        return Err(Error::NothingToInspect { method: recipe.method.name().to_owned() });
    }
    progress.start(layers.iter().map(|layer| layer_bytes(&job, layer)).sum());
    let mut flow = Flow::new(Limits::new(max_memory, backend.batch_bytes(), 0), family.experts.len());
    let experts = Sources::alone(&job)?;
    let mut merged = Store::nothing();
    let mut captures = Captures::new(&job, &experts, &mut merged)?;
    let mut reader = Reader::ahead(&flow, requests(&job, &layers));
    let mut inspected = Vec::with_capacity(layers.len());
    for (done, layer) in layers.iter().enumerate() {
        progress.layer(&layer.name);
        let found = loop {
            let tried = match captures.reach(&job, &[layer], &mut merged).await {
                Ok(()) => look(&job, &mut reader, layer, captures.current()).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(found) => break found,
                Err(error) => try_again(&job, error, progress).await?,
            }
            reader.restart(requests(&job, &layers[done..]));
            captures = Captures::new(&job, &experts, &mut merged)?;
        };
        inspected.push(found);
        progress.advance(layer_bytes(&job, layer));
    }
    reader.finish(&mut flow);
    Ok(Inspection {
        esmerge: env!("ESMERGE_VERSION").to_owned(),
        base_model: crate::report::Input::of(&family.base, "base", None)?.name,
        experts: family.experts.iter().map(|expert| expert.name.clone()).collect(),
        device: backend.name(),
        accuracy: recipe.accuracy.to_string(),
        seed: recipe.seed,
        layers: inspected,
        warnings: faults.list(),
        seconds: Some(started.elapsed().as_secs_f64()),
    })
}

/// Subspaces of all experts in one layer.
async fn look<B: Backend>(
    job: &Job<'_, B>,
    reader: &mut Reader<'_>,
    layer: &Layer,
    captured: &[Vec<Captured>],
) -> Result<InspectedLayer, Error> {
    let Job { backend, recipe, family, .. } = *job;
    let device = || Error::device(&layer.name);
    let (tasks, solver) = (family.experts.len(), Solver { accuracy: recipe.accuracy, seed: recipe.seed });
    let r = if layer.rank > 0 { layer.rank } else { rank_budget(layer.d_out, tasks) };
    let ranks = ranks(r);
    let names = || family.experts.iter().map(|expert| expert.name.clone());
    let (mut norms, mut esd, mut svd) = (Vec::new(), Vec::new(), Vec::new());
    let (mut spectra, mut bases, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let mut calibrated = true;
    let members = members(&[layer], tasks);
    for group in cut(&members, &family.experts, captured, backend.max_tensor_bytes()) {
        let deltas = member_deltas(backend, reader, family, group)?;
        let inputs = member_inputs(backend, reader, family, captured, group)?;
        let own = backend.frobenius_norms(&deltas).map_err(device())?;
        norms.extend(backend.download(&own).await.map_err(device())?.into_iter().map(f64::from));
        let essential = essential_subspace(backend, &deltas, &inputs, Decomposition::Esd, r, solver);
        let essential = essential.await.map_err(device())?;
        esd.extend(shares(&essential, &ranks));
        spectra.extend(essential.eigenvalues.iter().map(|values| relative(values)));
        kept.extend(essential.eigenvalues.iter().map(|values| values.iter().filter(|v| **v > 0.0).count()));
        if let Inputs::DataFree = inputs {
            calibrated = false;
            svd.extend(shares(&essential, &ranks));
        } else {
            let singular = essential_subspace(backend, &deltas, &inputs, Decomposition::Svd, r, solver);
            let singular = singular.await.map_err(device())?;
            svd.extend(
                shares_of_shift(backend, &deltas, &inputs, &singular.basis, &ranks).await.map_err(device())?,
            );
        }
        bases.push(essential.basis);
    }
    let base = layer_weights(backend, reader, &family.base, layer)?;
    let base = backend.frobenius_norms(&base).map_err(device())?;
    let base_norm = backend.download(&base).await.map_err(device())?.into_iter().map(f64::from).sum();
    let bases = join_batches(backend, bases).map_err(device())?;
    let overlap = overlaps(backend, &bases, &kept).await.map_err(device())?;
    let by_expert = |values: Vec<Vec<f64>>| names().zip(values).collect::<BTreeMap<_, _>>();
    Ok(InspectedLayer {
        name: layer.name.clone(),
        kind: layer.kind(),
        d_out: layer.d_out,
        d_in: layer.d_in,
        rank: r,
        calibrated,
        base_norm,
        norm: names().zip(norms).collect(),
        ranks,
        esd: by_expert(esd),
        svd: by_expert(svd),
        spectrum: by_expert(spectra),
        overlap,
    })
}

/// 1, 2, 4 and so on up to the budget, and the budget.
fn ranks(r: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1usize), |rank| rank.checked_mul(2));
    powers.take_while(|rank| *rank < r).chain([r]).collect()
}

/// For each task the share of the energy that the first directions keep, `sum_{j <= k} lambda_j / sum lambda`, for each `k`.
fn shares<T>(subspace: &EssentialSubspace<T>, ranks: &[usize]) -> Vec<Vec<f64>> {
    let of_task =
        |(values, &kept): (&Vec<f64>, &f64)| cumulative(values, ranks, values.iter().sum::<f64>() / kept);
    subspace.eigenvalues.iter().zip(&subspace.energy_retention).map(of_task).collect()
}

/// The sums of the first of some energies over a total; 0 where that is nothing.
fn cumulative(energies: &[f64], ranks: &[usize], total: f64) -> Vec<f64> {
    let share = |&rank: &usize| energies.iter().take(rank).sum::<f64>() / total;
    ranks.iter().map(share).map(|share| if share.is_finite() { share.min(1.0) } else { 0.0 }).collect()
}

/// Eigenvalues over the largest; empty where all are 0.
fn relative(values: &[f64]) -> Vec<f64> {
    let largest = values.first().copied().unwrap_or_default();
    if largest > 0.0 { values.iter().map(|value| value / largest).collect() } else { Vec::new() }
}

/// The shares of the output shift's energy that the first rows of another basis keep: `||X dW^T u_j||^2` over `||X dW^T||^2`.
async fn shares_of_shift<B: Backend>(
    backend: &B,
    deltas: &B::Tensor,
    inputs: &Inputs<B::Tensor>,
    basis: &B::Tensor,
    ranks: &[usize],
) -> backend::Result<Vec<Vec<f64>>> {
    let projected = backend.matmul(basis, Op::None, deltas, Op::None)?; // T x r x d_in
    let (energies, totals) = match inputs {
        Inputs::Activations { x, .. } => {
            let along = backend.matmul(x, Op::None, &projected, Op::Transpose)?;
            let (along, shift) = (backend.column_norms(&along)?, output_shift(backend, x, deltas)?);
            let [along, total] = backend.download_all([&along, &backend.frobenius_norms(&shift)?]).await?;
            (squared(&along), squared(&total))
        }
        Inputs::Gram { gram, .. } => {
            let seen = |rows: &B::Tensor| {
                backend.row_products(rows, &backend.matmul(rows, Op::None, gram, Op::None)?)
            };
            let [along, all] = backend.download_all([&seen(&projected)?, &seen(deltas)?]).await?;
            let d_out = deltas.shape().rows.max(1);
            let total = all.chunks(d_out).map(|rows| rows.iter().map(|&v| f64::from(v)).sum());
            (along.iter().map(|&v| f64::from(v).max(0.0)).collect(), total.collect())
        }
        Inputs::DataFree => return Ok(Vec::new()),
    };
    let r = basis.shape().rows.max(1);
    Ok(energies.chunks(r).zip(totals).map(|(own, total)| cumulative(own, ranks, total)).collect())
}

fn squared(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v).powi(2)).collect()
}

/// `||U_i U_j^T||_F^2 / min(k_i, k_j)` of all pairs: 1 where one subspace lies in the other, 0 where they are orthogonal.
/// `bases` is `T x r x d_out` with orthonormal rows, of which `kept` are not zero.
async fn overlaps<B: Backend>(
    backend: &B,
    bases: &B::Tensor,
    kept: &[usize],
) -> backend::Result<Vec<Vec<f64>>> {
    let Shape { batch: tasks, rows: r, cols: d } = bases.shape();
    let mut overlaps = Vec::with_capacity(tasks);
    for i in 0..tasks {
        let own = backend.slice(bases, i..i + 1, 0..r, 0..d)?;
        let products = backend.matmul(bases, Op::None, &own, Op::Transpose)?;
        let norms = backend.download(&backend.frobenius_norms(&products)?).await?;
        let share = |(j, norm): (usize, f64)| match kept[i].min(kept[j]) {
            0 => 0.0,
            fewest => (norm / fewest as f64).min(1.0),
        };
        overlaps.push(squared(&norms).into_iter().enumerate().map(share).collect());
    }
    Ok(overlaps)
}

/// What [`look`] will read, as far as it is known before experts have run.
fn requests<'a, B: Backend>(
    job: &'a Job<'_, B>,
    layers: &'a [&'a Layer],
) -> impl Iterator<Item = Request> + use<'a, B> {
    let experts = &job.family.experts;
    layers.iter().flat_map(move |&layer| {
        let (members, captured) = (members(&[layer], experts.len()), vec![Vec::new(); experts.len()]);
        let groups = cut(&members, experts, &captured, job.backend.max_tensor_bytes());
        let of_group =
            |group| member_requests(job.family, group).into_iter().chain(input_requests(job.family, group));
        let of_groups: Vec<Request> = groups.into_iter().flat_map(of_group).collect();
        of_groups.into_iter().chain(layer_requests(&job.family.base, layer))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energies_are_summed_up_to_every_power_of_two_and_the_budget() {
        assert_eq!(ranks(1), [1]);
        assert_eq!(ranks(8), [1, 2, 4, 8]);
        assert_eq!(ranks(11), [1, 2, 4, 8, 11]);
        assert_eq!(cumulative(&[3.0, 1.0, 0.0], &[1, 2, 3], 4.0), [0.75, 1.0, 1.0]);
        assert_eq!(cumulative(&[0.0], &[1], 0.0), [0.0]);
    }
}
