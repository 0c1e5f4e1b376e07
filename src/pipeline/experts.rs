//! Second pass of ESM++: what the finished model lacks of every expert, layer by layer, as adapters and a router.
//!
//! Residuals are taken against the weights as they were written, so that an expert also restores what rounding to the output
//! type lost.

use super::faults::try_again;
use super::flow::Flow;
use super::inputs::{input_requests, member_inputs};
use super::members::{Member, cut, members};
use super::reader::{Reader, Request};
use super::spill::layer_bytes;
use super::weights::{layer_requests, layer_weights, member_deltas, member_requests};
use super::{Error, Job, Progress};
use crate::backend::{Backend, Dtype};
use crate::calibration::Captured;
use crate::checkpoint::journal::{Ledger, Written};
use crate::checkpoint::{
    ADAPTERS, Checkpoint, Extent, LoraModule, LoraWeight, LoraWriter, ModuleNames, OutputDir, RouterMeta,
    RouterWriter, first_not_finite,
};
use crate::data::read_json;
use crate::host::PathExt;
use crate::method::esm_plus::low_rank_experts;
use crate::method::{Decomposition, Solver};
use crate::plan::{Experts, Layer, Routed};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ops::Range;

/// Writes adapters and router beside a finished model; gives, for each routed layer and task, the share of the residual
/// output shift's energy that the expert restores.
pub(super) async fn write_experts<B: Backend>(
    job: &Job<'_, B>,
    experts: &Experts,
    (output, ledger): (&OutputDir, &Ledger),
    flow: &mut Flow,
    progress: &mut dyn Progress,
) -> Result<Vec<Vec<f64>>, Error> {
    let merged = Checkpoint::open(output.path())?;
    let mut adapters = adapters(job, experts, output)?;
    let mut router =
        RouterWriter::create(output.path(), &own_prototypes(experts), &router_meta(job, experts))?;
    let mut energy_retention = Vec::with_capacity(experts.layers.len());
    let counted = flow.rounding.clone(); // the merge has counted these weights
    let unit = |index: usize| format!("experts/{index}");
    let before: Vec<_> = (0..experts.layers.len()).map(|index| ledger.done::<Said>(&unit(index))).collect();
    let pending = |from: usize| {
        let layers = experts.layers.iter().zip(&before).skip(from);
        layers.filter(|(_, before)| before.is_none()).map(|(routed, _)| routed)
    };
    let mut reader = Reader::ahead(flow, requests(job, &merged, pending(0)));
    for (index, routed) in experts.layers.iter().enumerate() {
        let layer = &routed.layer;
        progress.layer(&format!("{} (experts)", layer.name));
        let factors = match &before[index] {
            Some((said, Some(values))) => Factors::restored(said, values)?,
            _ => {
                let factors = loop {
                    match layer_experts(job, &mut reader, &merged, layer).await {
                        Ok(factors) => break factors,
                        Err(error) => try_again(job, error, progress).await?,
                    }
                    reader.restart(requests(job, &merged, pending(index)));
                };
                factors.note(&unit(index), ledger)?;
                factors
            }
        };
        factors.write(layer, &mut adapters)?;
        energy_retention.push(factors.energy_retention);
        if has_own_prototypes(routed) {
            router.write(&prototypes(job, layer)?)?;
        }
        progress.advance(layer_bytes(job, layer));
    }
    reader.finish(flow);
    flow.rounding = counted;
    adapters.into_iter().try_for_each(LoraWriter::finish)?;
    router.finish()?;
    Ok(energy_retention)
}

/// Nothing captured during the run: the recipe admits only calibration files here.
fn files_only<B>(job: &Job<'_, B>) -> Vec<Vec<Captured>> {
    job.family.experts.iter().map(|_| Vec::new()).collect()
}

/// The experts of one layer, for all tasks.
#[derive(Default)]
struct Factors {
    /// `A_t`, `T x r x d_in`.
    a: Vec<f32>,
    /// `B_t^T`, `T x r x d_out`.
    b: Vec<f32>,
    energy_retention: Vec<f64>,
}

/// Decomposes the residuals of a layer, in groups of tasks that fit the device.
async fn layer_experts<B: Backend>(
    job: &Job<'_, B>,
    reader: &mut Reader<'_>,
    merged: &Checkpoint,
    layer: &Layer,
) -> Result<Factors, Error> {
    let device = || Error::device(&layer.name);
    let solver = Solver { accuracy: job.recipe.accuracy, seed: job.recipe.seed };
    let decomposition = job.recipe.method.experts().map_or(Decomposition::Esd, |e| e.decomposition);
    let captured = files_only(job);
    let mut factors = Factors::default();
    let members = members(&[layer], job.family.experts.len());
    for group in cut(&members, &job.family.experts, &captured, job.backend.max_tensor_bytes()) {
        let residuals = residuals(job, reader, merged, layer, group)?;
        let inputs = member_inputs(job.backend, reader, job.family, &captured, group)?;
        let experts =
            low_rank_experts(job.backend, &residuals, &inputs, decomposition, layer.rank, solver).await;
        let experts = experts.map_err(device())?;
        factors.a.extend(job.backend.download(&experts.a).await.map_err(device())?);
        factors.b.extend(job.backend.download(&experts.b).await.map_err(device())?);
        factors.energy_retention.extend(experts.energy_retention);
    }
    Ok(factors)
}

/// What the ledger says of a layer's experts, beside their factors.
#[derive(Serialize, Deserialize)]
struct Said {
    /// Values of `a`, which come first.
    a: usize,
    energy_retention: Vec<f64>,
}

impl Factors {
    fn note(&self, unit: &str, ledger: &Ledger) -> Result<(), Error> {
        if !ledger.is_listed() {
            return Ok(());
        }
        let values = bytemuck::cast_slice(&[&self.a[..], &self.b].concat()).to_vec();
        let (place, crc32) = (ledger.reserve(values.len() as u64)?, crc32fast::hash(&values));
        place.write(&values, 0)?;
        let written = Written { place, bytes: values.len() as u64, crc32 };
        let said = Said { a: self.a.len(), energy_retention: self.energy_retention.clone() };
        Ok(ledger.note(unit, Some(&written), &said)?)
    }

    fn restored(said: &Said, values: &Extent) -> Result<Factors, Error> {
        let mut a: Vec<f32> = bytemuck::pod_collect_to_vec(&values.read()?);
        let b = a.split_off(said.a.min(a.len()));
        Ok(Factors { a, b, energy_retention: said.energy_retention.clone() })
    }

    /// Appends the experts to the adapters of their tasks, the weights of a stack each with its rows.
    fn write(&self, layer: &Layer, adapters: &mut [LoraWriter]) -> Result<(), Error> {
        for values in [&self.a, &self.b] {
            if let Some((index, value)) = first_not_finite(Dtype::F32, bytemuck::cast_slice(values)) {
                let what = format!("gave {value} at element {index} of an expert's factors");
                let cause = "its residuals or inputs are too large for float32; look at the experts' weights and calibration";
                return Err(Error::NotFinite { layer: layer.name.clone(), what, cause: cause.to_owned() });
            }
        }
        let (a, b) = (self.a.chunks(layer.rank * layer.d_in), self.b.chunks(layer.rank * layer.d_out));
        for ((a, b), adapter) in a.zip(b).zip(adapters) {
            let mut row = 0;
            for part in &layer.parts {
                adapter.write(a, &columns_as_rows(b, layer, row..row + part.rows))?;
                row += part.rows;
            }
        }
        Ok(())
    }
}

/// `R_t = W_t - W_merged = dW_t + (W_0 - W_merged)`, `T x d_out x d_in`.
fn residuals<B: Backend>(
    job: &Job<'_, B>,
    reader: &mut Reader<'_>,
    merged: &Checkpoint,
    layer: &Layer,
    members: &[Member<'_>],
) -> Result<B::Tensor, Error> {
    let device = || Error::device(&layer.name);
    let mut residuals = member_deltas(job.backend, reader, job.family, members)?;
    let mut shift = layer_weights(job.backend, reader, &job.family.base, layer)?;
    let merged = layer_weights(job.backend, reader, merged, layer)?;
    job.backend.axpby(-1.0, &merged, 1.0, &mut shift).map_err(device())?;
    job.backend.axpby(1.0, &shift, 1.0, &mut residuals).map_err(device())?;
    Ok(residuals)
}

/// What [`layer_experts`] will read for some layers.
fn requests<'a, B: Backend>(
    job: &'a Job<'_, B>,
    merged: &'a Checkpoint,
    layers: impl Iterator<Item = &'a Routed> + 'a,
) -> impl Iterator<Item = Request> + 'a {
    let experts = &job.family.experts;
    let of_group = move |layer: &Layer, group: &[Member<'_>]| {
        let deltas = member_requests(job.family, group).into_iter();
        let deltas =
            deltas.chain(layer_requests(&job.family.base, layer)).chain(layer_requests(merged, layer));
        deltas.chain(input_requests(job.family, group)).collect::<Vec<_>>()
    };
    layers.flat_map(move |Routed { layer, .. }| {
        let members = members(&[layer], experts.len());
        let groups = cut(&members, experts, &files_only(job), job.backend.max_tensor_bytes()).into_iter();
        groups.flat_map(|group| of_group(layer, group)).collect::<Vec<_>>()
    })
}

/// Rows `part` of `B`, from `B^T` (`r x d_out`): what the expert adds to one of the weights in a stack.
fn columns_as_rows(b_transposed: &[f32], layer: &Layer, part: Range<usize>) -> Vec<f32> {
    let (r, d_out) = (layer.rank, layer.d_out);
    part.flat_map(|i| (0..r).map(move |j| b_transposed[j * d_out + i])).collect()
}

/// One adapter a task, open for its layers.
fn adapters<B>(job: &Job<'_, B>, experts: &Experts, output: &OutputDir) -> Result<Vec<LoraWriter>, Error> {
    let lora = |layer: &Layer| -> Vec<LoraWeight> {
        let weight = |part: &crate::plan::Part| LoraWeight {
            name: part.name.clone(),
            rank: layer.rank,
            d_out: part.rows,
            d_in: layer.d_in,
            module: LoraModule::Linear,
        };
        layer.parts.iter().map(weight).collect()
    };
    let weights: Vec<LoraWeight> = experts.layers.iter().flat_map(|routed| lora(&routed.layer)).collect();
    let r = experts.layers.iter().map(|routed| routed.layer.rank).max().unwrap_or(experts.rank);
    let base = &job.family.base;
    let matrices = || base.names().filter(|name| base.get(name).is_some_and(|m| m.matrix().is_some()));
    let config =
        match base.folder().map(|folder| folder.join("config.json")).filter(|path| path.leads_to_file()) {
            Some(path) => read_json(&path)?,
            None => Value::Null,
        };
    let names = ModuleNames::new(&config, base.names());
    // whole, because a relative path would be taken from wherever the adapter is loaded
    let model = std::path::absolute(output.wanted()).unwrap_or_else(|_| output.wanted().to_path_buf());
    let adapter = |name: &str| {
        let folder = output.path().join(ADAPTERS).join(name);
        Ok(LoraWriter::create(&folder, &weights, r, &model.to_string_lossy(), matrices(), &names)?)
    };
    job.family.experts.iter().map(|expert| adapter(&expert.name)).collect()
}

fn has_own_prototypes(routed: &Routed) -> bool {
    routed.layer.parts.first().is_some_and(|part| part.name == routed.prototypes)
}

/// The weights that get prototypes of their own, and their inputs.
fn own_prototypes(experts: &Experts) -> Vec<(String, usize)> {
    let own = experts.layers.iter().filter(|routed| has_own_prototypes(routed));
    own.map(|routed| (routed.prototypes.clone(), routed.layer.d_in)).collect()
}

fn router_meta<B>(job: &Job<'_, B>, experts: &Experts) -> RouterMeta {
    let weights = |routed: &Routed| routed.layer.parts.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    let mut meta = RouterMeta {
        tasks: job.family.experts.iter().map(|e| e.name.clone()).collect(),
        rank: experts.rank,
        residual_base: experts.residual_base.name().to_owned(),
        ..RouterMeta::default()
    };
    for routed in &experts.layers {
        let others = weights(routed).into_iter().filter(|name| *name != routed.prototypes);
        meta.aliases.extend(others.map(|name| (name, routed.prototypes.clone())));
        if routed.layer.parts.len() > 1 {
            meta.stacks.push(weights(routed));
        }
    }
    meta
}

/// `p_t` of all tasks, `T x d_in`.
fn prototypes<B>(job: &Job<'_, B>, layer: &Layer) -> Result<Vec<f32>, Error> {
    let mut rows = Vec::with_capacity(job.family.experts.len() * layer.d_in);
    for expert in &job.family.experts {
        let Some(calibration) = &expert.calibration else { continue };
        let source = layer.parts.iter().find_map(|part| calibration.source_of(&part.name));
        if let Some((weight, _)) = source {
            rows.extend(calibration.mean(weight)?);
        }
    }
    Ok(rows)
}
