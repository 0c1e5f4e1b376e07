//! What a merge has to tell: outcomes, layer by layer and group by group.

use super::decompose::{FEWEST_TOKENS, Outcome};
use super::{Error, Job, Options};
use crate::backend::Backend;
use crate::method::{AlphaScope, Preset, tsv};
use crate::plan::{Experts, Layer, Role};
use crate::recipe::{Calibration, Method};
use crate::report::{ExpertsReport, Group, Input, LayerReport, Report, RoutedReport, library};
use indexmap::IndexMap;

/// The report of a finished merge, without any times: the same merge gives the same report.
pub(super) fn report<B: Backend>(
    job: &Job<'_, B>,
    outcomes: &[Outcome],
    betas: &[f64],
    options: &Options,
) -> Result<Report, Error> {
    let layers = job.plan.layers.iter().zip(outcomes).zip(betas);
    let layers: Vec<LayerReport> = layers.map(|((l, o), &b)| layer_report(job, l, o, b)).collect();
    let calibrated = job
        .recipe
        .models
        .iter()
        .any(|m| matches!(m.calibration, Calibration::File(_) | Calibration::Data(_)));
    let inputs = inputs(job)?;
    let mut report = Report {
        merge_method: job.recipe.method.name().to_owned(),
        base_model: inputs[0].name.clone(),
        library_name: job.family.base.folder().and_then(library),
        inputs,
        models: job.recipe.models.iter().map(|m| m.name.clone()).collect(),
        device: job.backend.name(),
        accuracy: Some(job.recipe.accuracy.to_string()),
        seed: Some(job.recipe.seed),
        alpha: job.plan.alpha,
        out_dtype: job.recipe.out_dtype.map(|d| d.to_string()),
        overrides: options.overrides.clone(),
        groups: groups(job, &layers),
        layers,
        account: Some(job.plan.account.clone()),
        warnings: job.plan.warnings.clone(),
        ..Report::default()
    };
    if let Method::Esm(esm) = &job.recipe.method {
        let name = Preset::NAMES.iter().find(|(_, p)| *p == esm.preset).map(|(name, _)| *name);
        report.preset = name.map(str::to_owned);
        report.alpha_scope = Some(if esm.alpha_scope == AlphaScope::All { "all" } else { "esm" }.to_owned());
        report.calibrated = Some(calibrated);
    }
    Ok(report)
}

/// The base, then the experts.
fn inputs<B>(job: &Job<'_, B>) -> Result<Vec<Input>, Error> {
    let weighted = job.recipe.method.description().parameter("weight").is_some();
    let mut inputs = vec![Input::of(&job.family.base, "base", None)?];
    for (expert, model) in job.family.experts.iter().zip(&job.recipe.models) {
        let weight = model.weight().filter(|_| weighted);
        let role = if expert.is_delta { "task vector" } else { "expert" };
        let mut own = match &expert.adapter {
            None => vec![Input::of(&expert.weights, role, weight)?],
            Some(adapter) => vec![Input { weight, ..Input::of_adapter(adapter)? }],
        };
        if expert.adapter.as_ref().is_some_and(|adapter| adapter.file().path() != expert.own.path()) {
            own.push(Input::of(&expert.own, "model of an adapter", None)?);
        }
        own[0].name.clone_from(&expert.name);
        inputs.extend(own);
    }
    Ok(inputs)
}

fn layer_report<B>(job: &Job<'_, B>, layer: &Layer, outcome: &Outcome, beta: f64) -> LayerReport {
    let by_task = |values: &[f64]| -> IndexMap<String, f64> {
        job.family.experts.iter().map(|e| e.name.clone()).zip(values.iter().copied()).collect()
    };
    let decomposed = matches!(layer.role, Role::Esm | Role::TsvM | Role::Spectral);
    let planned = LayerReport::planned(job.plan, layer);
    let planned = match outcome.too_few_tokens {
        false => planned,
        true => LayerReport {
            role: Role::TsvM.name().to_owned(),
            reason: Some(format!(
                "few tokens: an expert of a mixture that saw fewer than {FEWEST_TOKENS} in one of the models"
            )),
            rank: Some(tsv::rank_budget(layer.d_out, layer.d_in, job.family.experts.len())),
            ..planned
        },
    };
    LayerReport {
        norm: decomposed.then_some(outcome.norm),
        beta: layer.group.as_ref().map(|_| beta),
        energy_retention: by_task(&outcome.energy_retention),
        task_scale: by_task(&outcome.task_scales),
        rank_deficient: outcome.rank_deficient,
        ..planned
    }
}

/// A word on layers that experts change and whose merged delta is zero: no direction of theirs shows on the inputs.
pub(super) fn vanished<B>(job: &Job<'_, B>, outcomes: &[Outcome]) -> Option<String> {
    let layers = job.plan.layers.iter().zip(outcomes);
    let gone: Vec<&str> = layers
        .filter(|(_, outcome)| outcome.changed && outcome.norm == 0.0)
        .map(|(layer, _)| layer.name.as_str())
        .collect();
    let (first, more) = (gone.first()?, gone.len() - 1);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!(
        "the merged delta of `{first}`{more} is zero, though experts differ from the base there: on the inputs in their \
         calibration they do not; capture it again if those are not what the layer sees"
    ))
}

/// The experts of ESM++; `energy` is what they restore, per layer and task.
pub(super) fn experts<B>(job: &Job<'_, B>, experts: &Experts, energy: &[Vec<f64>]) -> ExpertsReport {
    let tasks = || job.family.experts.iter().map(|e| e.name.clone());
    let base = &job.family.base;
    let model: usize = base.names().filter_map(|name| base.get(name)).map(|meta| meta.elements()).sum();
    let layers = experts.layers.iter().zip(energy).map(|(routed, energy)| RoutedReport {
        name: routed.layer.name.clone(),
        tensors: routed.layer.parts.iter().map(|p| p.name.clone()).collect(),
        rank: routed.layer.rank,
        prototypes: routed.prototypes.clone(),
        energy_restored: tasks().zip(energy.iter().copied()).collect(),
    });
    ExpertsReport {
        rank: experts.rank,
        residual_base: experts.residual_base.name().to_owned(),
        parameters_per_task: experts.parameters,
        share_of_model: experts.parameters as f64 / model.max(1) as f64,
        routing_values: experts.routing,
        flops_per_token: experts.flops_per_token,
        layers: layers.collect(),
    }
}

/// Decomposed layers by their kind; the others by what was done and why.
fn groups<B>(job: &Job<'_, B>, layers: &[LayerReport]) -> Vec<Group> {
    let mut groups: IndexMap<(String, String), Group> = IndexMap::new();
    for (layer, report) in job.plan.layers.iter().zip(layers) {
        let group = groups.entry(group_key(layer, report)).or_insert_with(|| Group {
            name: report.rank.map(|_| layer.kind()),
            role: report.role.clone(),
            reason: report.reason.clone(),
            scaled_by_alpha: report.scaled_by_alpha,
            rank: report.rank,
            ..Group::default()
        });
        group.layers += 1;
        group.tensors += layer.parts.len();
        group.energy_retention.extend(report.energy_retention.values().copied());
        group.task_scale.extend(report.task_scale.values().copied());
        group.beta.extend(report.beta);
        group.rank_deficient += usize::from(report.rank_deficient);
    }
    groups.into_values().collect()
}

fn group_key(layer: &Layer, report: &LayerReport) -> (String, String) {
    match report.rank {
        Some(_) => (report.role.clone(), layer.kind()),
        None => (report.role.clone(), report.reason.clone().unwrap_or_default()),
    }
}

/// Adds the time each decomposed layer took to its group.
pub(super) fn add_times<B>(report: &mut Report, job: &Job<'_, B>, seconds: &[f64]) {
    let mut times: IndexMap<(String, String), f64> = IndexMap::new();
    for ((layer, described), &spent) in job.plan.layers.iter().zip(&report.layers).zip(seconds) {
        *times.entry(group_key(layer, described)).or_default() += spent;
    }
    for (group, spent) in report.groups.iter_mut().zip(times.into_values()) {
        group.seconds = Some(spent);
    }
}
