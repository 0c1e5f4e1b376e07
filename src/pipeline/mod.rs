//! Carries out a plan: read, upload, compute, download, write.
//!
//! One layer is in memory at a time, with all its experts; nothing needs the whole model. The merged deltas of decomposed
//! layers go to a file, in f32, and the weights are made from them once every layer's norm is known.

mod assemble;
mod decompose;
mod error;
mod experts;
mod inputs;
mod progress;
mod rescale;
mod rounding;
mod summary;
mod sums;
mod weights;

pub use error::Error;
pub use progress::{Progress, Silent};
pub use rescale::{Rescale, rescale};

use crate::backend::Backend;
use crate::checkpoint::{
    DeltaEntry, DeltaMeta, DeltaWriter, OutputDir, TensorMeta, copy_sidecars, fingerprint,
};
use crate::method::{EsmOptions, assembly};
use crate::plan::{Family, Layer, Plan, Role, SUM_CHUNK};
use crate::recipe::{Method, Recipe};
use crate::report::Report;
use assemble::{Files, Step, write_json, write_model};
use decompose::{Outcome, merge_layer};
use indexmap::IndexMap;
use rounding::{Rounding, WARN_ABOVE};
use std::path::{Path, PathBuf};
use std::time::Instant;
use sums::Merged;

/// What a merge is asked for beside the recipe.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of one output file.
    pub shard_size: u64,
    /// Where to keep the merged deltas.
    pub keep_delta: Option<PathBuf>,
    /// What flags changed in the recipe, for the report: `--alpha 0.7`.
    pub overrides: Vec<String>,
}

/// Everything that the steps of a merge share.
struct Job<'a, B> {
    backend: &'a B,
    recipe: &'a Recipe,
    family: &'a Family,
    plan: &'a Plan,
}

impl<B> Job<'_, B> {
    fn esm_options(&self) -> Option<&EsmOptions> {
        match &self.recipe.method {
            Method::Esm(esm) => Some(&esm.options),
            _ => None,
        }
    }
}

/// What is said of `--keep-delta` with ESM++.
const KEPT_WITHOUT_USE: &str = "the kept deltas are for inspection only: the experts of esm++ depend on alpha, so that \
    `esmerge rescale` refuses them";

/// Merges a family into a folder that appears under its name when it is complete.
pub async fn merge<B: Backend>(
    backend: &B,
    recipe: &Recipe,
    family: &Family,
    plan: &Plan,
    output: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let started = Instant::now();
    let output = OutputDir::create(output)?;
    let job = Job { backend, recipe, family, plan };
    if let Some(file) = &options.keep_delta {
        check_keep_delta(file, output.wanted())?;
    }
    if plan.experts.is_some() && options.keep_delta.is_some() {
        progress.warn(KEPT_WITHOUT_USE);
    }
    check_fingerprints(family)?;
    progress.start(work(&job, options.keep_delta.is_some()));

    let mut rounding = vec![Rounding::default(); family.experts.len()];
    let (mut spill, outcomes, times) = decompose(&job, &output, options, &mut rounding, progress).await?;
    spill.flush()?;
    let betas = betas(&job, &outcomes);
    let steps = steps(&job, &betas);
    let mut deltas = Merged { job: &job, spill: &spill, rounding: &mut rounding };
    let files = Files { shard_size: options.shard_size, always_index: plan.experts.is_some() };
    write_model(backend, &family.base, &steps, &mut deltas, &output, &files, progress).await?;
    let energy = match &plan.experts {
        Some(experts) => experts::write_experts(&job, experts, &output, progress).await?,
        None => Vec::new(),
    };

    let mut report = summary::report(&job, &outcomes, &betas, options);
    report.experts = plan.experts.as_ref().map(|experts| summary::experts(&job, experts, &energy));
    for (expert, rounding) in family.experts.iter().zip(&rounding) {
        let Some(damage) = rounding.damage() else { continue };
        report.rounding.insert(expert.name.clone(), damage);
        if damage > WARN_ABOVE {
            let warning = rounding::warning(&expert.name, damage);
            progress.warn(&warning);
            report.warnings.push(warning);
        }
    }
    if let Some(folder) = family.base.folder() {
        copy_sidecars(folder, output.path(), recipe.out_dtype)?;
    }
    write_reports(&output, &recipe.text, &report)?;
    finish(output, spill, options, &job, &betas)?;
    summary::add_times(&mut report, &job, &times);
    report.seconds = Some(started.elapsed().as_secs_f64());
    Ok(report)
}

/// First half: decomposed layers, and with `--keep-delta` every other merged layer too, into the spill.
async fn decompose<B: Backend>(
    job: &Job<'_, B>,
    output: &OutputDir,
    options: &Options,
    rounding: &mut [Rounding],
    progress: &mut dyn Progress,
) -> Result<(DeltaWriter, Vec<Outcome>, Vec<f64>), Error> {
    let keep = options.keep_delta.is_some();
    let tensors = job.plan.layers.iter().filter(|l| is_spilled(l, keep)).flat_map(|l| &l.parts);
    let tensors = tensors.map(|part| (part.name.clone(), part.shape.clone())).collect();
    // The kept file is created where it will stay, since only a rename within one folder is atomic.
    let folder = match &options.keep_delta {
        Some(file) => parent(file),
        None => output.path(),
    };
    let ones = vec![1.0; job.plan.layers.len()];
    let meta = if keep { delta_meta(job, &ones, "0".repeat(64)) } else { DeltaMeta::default() };
    let mut spill = DeltaWriter::create(folder, tensors, &meta)?;

    let mut outcomes = Vec::with_capacity(job.plan.layers.len());
    let mut seconds = Vec::with_capacity(job.plan.layers.len());
    for (i, layer) in job.plan.layers.iter().enumerate() {
        let started = Instant::now();
        let mut outcome = Outcome::default();
        if is_spilled(layer, keep) {
            progress.layer(&layer.name);
            if layer.role == Role::Sum {
                spill_sum(job, layer, &mut spill, rounding).await?;
            } else {
                let (values, merged) = merge_layer(job, layer, i as u32, rounding).await?;
                spill.write(&values)?;
                outcome = merged;
            }
            progress.advance(layer_bytes(job, layer));
        }
        outcomes.push(outcome);
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok((spill, outcomes, seconds))
}

/// Whether the delta of a layer goes through the spill: always where layers are compared, and everywhere if the deltas are
/// kept.
fn is_spilled(layer: &Layer, keep: bool) -> bool {
    match layer.role {
        Role::Esm | Role::TsvM => true,
        Role::Sum => keep,
        Role::Base | Role::Pretrained | Role::Experts => false,
    }
}

async fn spill_sum<B: Backend>(
    job: &Job<'_, B>,
    layer: &Layer,
    spill: &mut DeltaWriter,
    rounding: &mut [Rounding],
) -> Result<(), Error> {
    for part in &layer.parts {
        for start in (0..part.elements()).step_by(SUM_CHUNK) {
            let range = start..part.elements().min(start + SUM_CHUNK);
            let base = weights::read_row(job.backend, &job.family.base, &part.name, range.clone(), None)?;
            let sum = sums::sum(job, &part.name, range, &base, rounding).await?;
            spill.write(&job.backend.download(&sum).await.map_err(Error::device(&part.name))?)?;
        }
    }
    Ok(())
}

/// Inter-layer scales, layer by layer.
fn betas<B>(job: &Job<'_, B>, outcomes: &[Outcome]) -> Vec<f64> {
    let norms: Vec<f64> = outcomes.iter().map(|o| o.norm).collect();
    let groups: Vec<Option<&str>> = job.plan.layers.iter().map(|l| l.group.as_deref()).collect();
    assembly::inter_layer_scales(&norms, &groups, job.esm_options().and_then(|o| o.inter_layer))
}

/// What is written for every tensor, in the order of the base.
fn steps<B>(job: &Job<'_, B>, betas: &[f64]) -> IndexMap<String, Step> {
    let mut found: IndexMap<&str, Step> = IndexMap::new();
    for (layer, &beta) in job.plan.layers.iter().zip(betas) {
        let alpha = if layer.scaled { job.plan.alpha } else { 1.0 };
        for part in &layer.parts {
            let stored = job.family.base.get(&part.name).and_then(|m| m.float());
            let step = match (layer.role, stored) {
                (Role::Base, _) | (_, None) => Step::Copy,
                (Role::Pretrained, Some(stored)) => {
                    Step::Keep { dtype: job.recipe.out_dtype.unwrap_or(stored) }
                }
                (_, Some(stored)) => {
                    Step::Merge { alpha, beta, dtype: job.recipe.out_dtype.unwrap_or(stored) }
                }
            };
            found.insert(&part.name, step);
        }
    }
    job.family.base.names().filter_map(|name| Some((name.to_owned(), *found.get(name)?))).collect()
}

fn delta_meta<B>(job: &Job<'_, B>, betas: &[f64], base_fingerprint: String) -> DeltaMeta {
    let unmerged = |layer: &Layer| matches!(layer.role, Role::Base | Role::Pretrained);
    let merged = job.plan.layers.iter().zip(betas).filter(|(layer, _)| !unmerged(layer));
    let entries = merged.flat_map(|(layer, &beta)| {
        let entry = DeltaEntry { beta, role: summary::treatment(job, layer).to_owned(), alpha: layer.scaled };
        layer.parts.iter().map(move |part| (part.name.clone(), entry.clone()))
    });
    DeltaMeta {
        base_fingerprint,
        method: job.recipe.method.name().to_owned(),
        models: job.recipe.models.iter().map(|m| m.name.clone()).collect(),
        alpha: job.plan.alpha,
        out_dtype: job.recipe.out_dtype,
        recipe: job.recipe.text.clone(),
        tensors: entries.collect(),
    }
}

/// Gives the finished files their names: both or none.
fn finish<B>(
    output: OutputDir,
    spill: DeltaWriter,
    options: &Options,
    job: &Job<'_, B>,
    betas: &[f64],
) -> Result<(), Error> {
    let Some(file) = &options.keep_delta else {
        drop(spill); // it lies in the output folder, which must not get it
        return Ok(output.finish()?);
    };
    let fingerprint = fingerprint(&job.family.base, job.family.base.names())?;
    spill.finish(file, &delta_meta(job, betas, fingerprint))?;
    output.finish().map_err(|e| {
        let _ = std::fs::remove_file(file);
        e.into()
    })
}

/// Recipe, report and model card.
fn write_reports(output: &OutputDir, recipe: &str, report: &Report) -> Result<(), Error> {
    write_text(output, "recipe.yaml", recipe)?;
    write_json(output, crate::report::FILE, report)?;
    write_text(output, "README.md", &crate::report::model_card(report, recipe))
}

fn write_text(output: &OutputDir, name: &str, text: &str) -> Result<(), Error> {
    let path = output.path().join(name);
    let io = |source| crate::checkpoint::Error::Io { action: "write", path: path.clone(), source };
    Ok(std::fs::write(&path, text).map_err(io)?)
}

fn check_fingerprints(family: &Family) -> Result<(), Error> {
    for expert in &family.experts {
        if let Some(calibration) = &expert.calibration {
            calibration.check_fingerprint(&expert.weights)?;
        }
    }
    Ok(())
}

fn check_keep_delta(file: &Path, output: &Path) -> Result<(), Error> {
    let refuse = |reason: &str| Error::KeepDelta { path: file.to_path_buf(), reason: reason.to_owned() };
    if file.symlink_metadata().is_ok() {
        return Err(refuse("it exists already; name a new file"));
    }
    if file.starts_with(output) {
        return Err(refuse("it lies in the output folder; keep it beside that"));
    }
    if !parent(file).is_dir() {
        return Err(refuse("its folder does not exist; create that first"));
    }
    Ok(())
}

fn parent(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Bytes that the progress bar counts: weights read in the first half and for experts, weights written in the second.
fn work<B>(job: &Job<'_, B>, keep: bool) -> u64 {
    let first = job.plan.layers.iter().filter(|l| is_spilled(l, keep));
    let first: u64 = first.map(|l| layer_bytes(job, l)).sum();
    let routed = job.plan.experts.iter().flat_map(|experts| &experts.layers);
    let first = first + routed.map(|routed| layer_bytes(job, &routed.layer)).sum::<u64>();
    let written = |meta: &TensorMeta| match job.recipe.out_dtype {
        Some(dtype) if meta.float().is_some() => (dtype.size() * meta.elements()) as u64,
        _ => meta.bytes,
    };
    let base = &job.family.base;
    first + base.names().filter_map(|name| base.get(name)).map(written).sum::<u64>()
}

/// Bytes of a layer's weights in the base and all experts.
fn layer_bytes<B>(job: &Job<'_, B>, layer: &Layer) -> u64 {
    let models = std::iter::once(&job.family.base).chain(job.family.experts.iter().map(|e| &e.weights));
    let bytes = |model: &crate::checkpoint::Checkpoint| {
        layer.parts.iter().filter_map(|p| model.get(&p.name)).map(|m| m.bytes).sum::<u64>()
    };
    models.map(bytes).sum()
}
