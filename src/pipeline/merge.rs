//! The order of a merge.

use super::assemble::{Files, Step, write_model};
use super::decompose::Outcome;
use super::experts::write_experts;
use super::outputs::{check_keep_delta, finish, write_reports};
use super::rounding::{self, Rounding, WARN_ABOVE};
use super::spill::{is_spilled, layer_bytes, spill};
use super::sums::Merged;
use super::{Error, Job, Progress, search, summary};
use crate::backend::layers::Layers;
use crate::checkpoint::{OutputDir, TensorMeta, copy_sidecars};
use crate::method::assembly;
use crate::plan::{Family, Plan, Role};
use crate::recipe::Recipe;
use crate::report::Report;
use indexmap::IndexMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

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

/// What is said of `--keep-delta` with ESM++.
const KEPT_WITHOUT_USE: &str = "the kept deltas are for inspection only: the experts of esm++ depend on alpha, so that \
    `esmerge rescale` refuses them";

/// Merges a family into a folder that appears under its name when it is complete.
pub async fn merge<B: Layers>(
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
        if plan.experts.is_some() {
            progress.warn(KEPT_WITHOUT_USE);
        }
    }
    check_fingerprints(family)?;
    progress.start(work(&job, options.keep_delta.is_some() || plan.search.is_some()));

    let mut rounding = vec![Rounding::default(); family.experts.len()];
    let spilled = spill(&job, &output, options, &mut rounding, progress).await?;
    let betas = betas(&job, &spilled.outcomes);
    let (searched, alpha_search) = match search::alpha(&job, &spilled.deltas, &betas, progress).await? {
        None => (plan.clone(), None),
        Some((alpha, search)) => (Plan { alpha, ..plan.clone() }, Some(search)),
    };
    let job = Job { plan: &searched, ..job };
    let steps = steps(&job, &betas);
    let mut deltas = Merged { job: &job, spill: &spilled.deltas, rounding: &mut rounding };
    let files = Files { shard_size: options.shard_size, always_index: plan.experts.is_some() };
    write_model(backend, &family.base, &steps, &mut deltas, &output, &files, progress).await?;

    let mut report = summary::report(&job, &spilled.outcomes, &betas, options);
    report.alpha_search = alpha_search;
    if let Some(experts) = &plan.experts {
        let energy = write_experts(&job, experts, &output, progress).await?;
        report.experts = Some(summary::experts(&job, experts, &energy));
    }
    if let Some(warning) = summary::vanished(&job, &spilled.outcomes) {
        progress.warn(&warning);
        report.warnings.push(warning);
    }
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
    report.products = backend.tuning();
    write_reports(&output, &recipe.text, &report)?;
    finish(output, spilled.deltas, options, &job, &betas)?;
    summary::add_times(&mut report, &job, &spilled.seconds);
    report.seconds = Some(started.elapsed().as_secs_f64());
    Ok(report)
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

fn check_fingerprints(family: &Family) -> Result<(), Error> {
    for expert in &family.experts {
        if let Some(calibration) = &expert.calibration {
            calibration.check_fingerprint(&expert.weights)?;
        }
    }
    Ok(())
}

/// Bytes that the progress bar counts: weights read in the first half and for experts, weights written in the second.
fn work<B>(job: &Job<'_, B>, keep: bool) -> u64 {
    let first = job.plan.layers.iter().filter(|l| is_spilled(l, keep));
    let routed = job.plan.experts.iter().flat_map(|e| &e.layers).map(|routed| &routed.layer);
    let first: u64 = first.chain(routed).map(|l| layer_bytes(job, l)).sum();
    let written = |meta: &TensorMeta| match job.recipe.out_dtype {
        Some(dtype) if meta.float().is_some() => (dtype.size() * meta.elements()) as u64,
        _ => meta.bytes,
    };
    let base = &job.family.base;
    first + base.names().filter_map(|name| base.get(name)).map(written).sum::<u64>()
}
