//! A LoRA adapter of what a fine-tuned model differs from its base by.

use super::faults::{Faults, try_again};
use super::flow::{Flow, Limits};
use super::inputs::{input_requests, member_inputs};
use super::members::Member;
use super::outputs::{name_wanted, write_json};
use super::reader::{Reader, Request};
use super::spill::{chunks, layer_bytes};
use super::weights::{base_row, delta_row, member_deltas, member_requests, row_requests};
use super::{Error, Job, Progress};
use crate::backend::{Backend, Dtype};
use crate::checkpoint::{
    self, LoraModule, LoraWeight, LoraWriter, ModuleNames, OutputDir, first_not_finite, slice_of,
    stores_transposed,
};
use crate::host::Instant;
use crate::method::esm_plus::low_rank_experts;
use crate::method::{Decomposition, Solver};
use crate::plan::{Layer, Part, Role};
use crate::report::{self, Extracted, ExtractedLayer};

/// What is asked for beside the models.
#[derive(Clone, Copy, Debug)]
pub struct Extract {
    /// Directions of a weight.
    pub rank: usize,
    /// Bytes of memory for what is read ahead.
    pub max_memory: u64,
}

/// Writes an adapter of the family's one expert into a folder that appears under its name when it is complete. The plan is one of
/// ESM, which says what the linear weights of blocks are.
pub async fn extract<B: Backend>(
    backend: &B,
    (recipe, family, plan): (&crate::recipe::Recipe, &crate::plan::Family, &crate::plan::Plan),
    request: &Extract,
    output: OutputDir,
    progress: &mut dyn Progress,
) -> Result<Extracted, Error> {
    let started = Instant::now();
    output.left().iter().for_each(|left| progress.warn(&left.to_string()));
    let faults = Faults::default();
    let job = Job { backend, recipe, family, plan, of_model: None, faults: &faults };
    let written = write(job, request, &output, progress).await;
    let mut report = written.map_err(|e| name_wanted(e, &output, None))?;
    output.finish()?;
    report.seconds = Some(started.elapsed().as_secs_f64());
    Ok(report)
}

/// Everything, under temporary names.
async fn write<B: Backend>(
    job: Job<'_, B>,
    request: &Extract,
    output: &OutputDir,
    progress: &mut dyn Progress,
) -> Result<Extracted, Error> {
    let Job { backend, recipe, family, plan, .. } = job;
    if let Some((expert, calibration)) =
        family.experts.iter().find_map(|e| Some((e, e.calibration.as_ref()?)))
    {
        calibration.check_fingerprint(&expert.own)?;
    }
    let (with_factors, others): (Vec<&Layer>, Vec<&Layer>) =
        plan.layers.iter().partition(|layer| is_linear(&job, layer) && is_changed(&job, layer));
    let others: Vec<&Layer> = others.into_iter().filter(|layer| is_changed(&job, layer)).collect();
    if with_factors.is_empty() {
        return Err(Error::NothingToExtract { model: family.experts[0].own.path().to_path_buf() });
    }
    let work = with_factors.iter().chain(&others).map(|layer| layer_bytes(&job, layer)).sum();
    progress.start(work);
    let mut flow = Flow::new(Limits::new(request.max_memory, backend.batch_bytes(), 0), 1);
    let mut adapter = adapter(&job, &with_factors, request, output.path())?;
    let mut layers = Vec::with_capacity(with_factors.len());
    let mut reader = Reader::ahead(&flow, requests(&job, &with_factors));
    for (done, layer) in with_factors.iter().enumerate() {
        progress.layer(&layer.name);
        let factors = loop {
            match factors(&job, &mut reader, layer, request.rank).await {
                Ok(factors) => break factors,
                Err(error) => try_again(&job, error, progress).await?,
            }
            reader.restart(requests(&job, &with_factors[done..]));
        };
        adapter.write(&factors.a, &factors.b)?;
        layers.push(factors.report);
        progress.advance(layer_bytes(&job, layer));
    }
    adapter.finish()?;
    reader.restart(rows(&job, &others));
    let mut left_out = Vec::new();
    for layer in others {
        progress.layer(&layer.name);
        for part in &layer.parts {
            let norm = norm(&job, &mut reader, part).await?;
            if norm > 0.0 {
                left_out.push((part.name.clone(), norm));
            }
        }
        progress.advance(layer_bytes(&job, layer));
    }
    reader.finish(&mut flow);
    let report = Extracted {
        model: family.experts[0].name.clone(),
        base_model: report::Input::of(&family.base, "base", None)?.name,
        rank: request.rank,
        calibrated: family.experts[0].calibration.is_some(),
        device: backend.name(),
        accuracy: recipe.accuracy.to_string(),
        seed: recipe.seed,
        layers,
        left_out,
        ..Extracted::default()
    };
    write_json(output.path(), report::FILE, &report)?;
    let card = report.model_card();
    let path = output.path().join("README.md");
    crate::host::fs::write(&path, card).map_err(checkpoint::Error::io("write", &path))?;
    Ok(report)
}

/// The linear weights of blocks: ESM's, and matrices of blocks that are not ESM's; those are taken as they are stored. The matrices
/// of experts in one tensor belong to no module of their own.
fn is_linear<B>(job: &Job<'_, B>, layer: &Layer) -> bool {
    if slice_of(&layer.name).is_some() {
        return false;
    }
    let weight = || layer.block().is_some() && layer.name.ends_with("weight");
    let as_stored = || !stores_transposed(job.family.settings.model_type(), &job.family.base);
    layer.role == Role::Esm || (layer.role == Role::TsvM && weight() && as_stored())
}

fn is_changed<B>(job: &Job<'_, B>, layer: &Layer) -> bool {
    let merged = !matches!(layer.role, Role::Base | Role::Pretrained);
    merged && layer.parts.iter().any(|part| job.family.experts.iter().any(|e| e.changes(&part.name)))
}

/// The adapter, open for its weights.
fn adapter<B>(
    job: &Job<'_, B>,
    layers: &[&Layer],
    request: &Extract,
    folder: &std::path::Path,
) -> Result<LoraWriter, Error> {
    let weight = |layer: &&Layer| LoraWeight {
        name: layer.name.clone(),
        rank: rank(layer, request.rank),
        d_out: layer.d_out,
        d_in: layer.d_in,
        module: LoraModule::Linear,
    };
    let weights: Vec<LoraWeight> = layers.iter().map(weight).collect();
    let r = weights.iter().map(|weight| weight.rank).max().unwrap_or(request.rank);
    let base = &job.family.base;
    let names = ModuleNames::new(&job.family.settings.config, base.names());
    let matrices = base.names().filter(|name| base.get(name).is_some_and(|m| m.matrix().is_some()));
    let path = std::path::absolute(base.path()).unwrap_or_else(|_| base.path().to_path_buf());
    Ok(LoraWriter::create(folder, &weights, r, &path.to_string_lossy(), matrices, &names)?)
}

fn rank(layer: &Layer, wanted: usize) -> usize {
    wanted.min(layer.d_out).min(layer.d_in)
}

/// Factors of one weight on the host.
struct Factors {
    /// `r x d_in`
    a: Vec<f32>,
    /// `d_out x r`
    b: Vec<f32>,
    report: ExtractedLayer,
}

/// `B A`, the best of its rank: for the output shift of the layer on the inputs that are known, else for the difference itself.
async fn factors<B: Backend>(
    job: &Job<'_, B>,
    reader: &mut Reader<'_>,
    layer: &Layer,
    wanted: usize,
) -> Result<Factors, Error> {
    let Job { backend, recipe, family, .. } = *job;
    let device = || Error::device(&layer.name);
    let members = [Member { layer, task: 0 }];
    let deltas = member_deltas(backend, reader, family, &members)?;
    let (inputs, decomposition) = match layer.role {
        Role::Esm => (member_inputs(backend, reader, family, &[Vec::new()], &members)?, Decomposition::Esd),
        _ => (crate::method::esd::Inputs::DataFree, Decomposition::Svd),
    };
    let (r, solver) = (rank(layer, wanted), Solver { accuracy: recipe.accuracy, seed: recipe.seed });
    let found =
        low_rank_experts(backend, &deltas, &inputs, decomposition, r, solver).await.map_err(device())?;
    let norms = backend.frobenius_norms(&deltas).map_err(device())?;
    let read = backend.download_all([&found.a, &found.b, &norms]).await;
    let [a, b_transposed, norms] = read.map_err(device())?;
    for values in [&a, &b_transposed] {
        if let Some((index, value)) = first_not_finite(Dtype::F32, bytemuck::cast_slice(values)) {
            let what = format!("gave {value} at element {index} of its factors");
            let cause = "the differences or inputs are too large for float32; look at the model's weights and calibration";
            return Err(Error::NotFinite { layer: layer.name.clone(), what, cause: cause.to_owned() });
        }
    }
    let d_out = layer.d_out;
    let b = (0..d_out).flat_map(|i| (0..r).map(move |j| j * d_out + i)).map(|k| b_transposed[k]).collect();
    let report = ExtractedLayer {
        name: layer.name.clone(),
        kind: layer.kind(),
        rank: r,
        norm: norms.first().map_or(0.0, |&norm| norm.into()),
        energy_retention: found.energy_retention.first().copied().unwrap_or(0.0),
    };
    Ok(Factors { a, b, report })
}

/// What [`factors`] will read.
fn requests<'a, B: Backend>(
    job: &'a Job<'_, B>,
    layers: &'a [&'a Layer],
) -> impl Iterator<Item = Request> + use<'a, B> {
    layers.iter().flat_map(move |&layer| {
        let members = [Member { layer, task: 0 }];
        let inputs = if layer.role == Role::Esm { input_requests(job.family, &members) } else { Vec::new() };
        member_requests(job.family, &members).into_iter().chain(inputs).collect::<Vec<_>>()
    })
}

/// `||dW||_F` of a tensor.
async fn norm<B: Backend>(job: &Job<'_, B>, reader: &mut Reader<'_>, part: &Part) -> Result<f64, Error> {
    let Job { backend, family, .. } = *job;
    let mut squared = 0.0;
    for (tensor, range) in chunks(job, part) {
        let base = base_row(backend, reader, &family.base, tensor, range.clone())?;
        let delta = delta_row(backend, reader, (0, &family.experts[0]), tensor, range, &base)?;
        let Some(delta) = delta else { continue };
        let norms = backend.frobenius_norms(&delta).map_err(Error::device(tensor))?;
        let norms = backend.download(&norms).await.map_err(Error::device(tensor))?;
        squared += norms.iter().map(|&norm| f64::from(norm).powi(2)).sum::<f64>();
    }
    Ok(squared.sqrt())
}

/// What [`norm`] will read.
fn rows<'a, B: Backend>(
    job: &'a Job<'_, B>,
    layers: &[&'a Layer],
) -> impl Iterator<Item = Request> + use<'a, B> {
    let parts: Vec<&Part> = layers.iter().flat_map(|layer| &layer.parts).collect();
    let of_part = move |part: &'a Part| {
        chunks(job, part).flat_map(move |(tensor, range)| row_requests(job.family, tensor, range))
    };
    parts.into_iter().flat_map(of_part)
}
