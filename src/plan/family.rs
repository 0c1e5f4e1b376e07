//! The models a recipe names, opened: headers and settings only, no weights.

use super::matching::{Matching, Models, match_delta, match_mixtures};
use super::names::is_task_part;
use super::quantised::refuse_quantised;
use super::settings::{Settings, weights_mean_the_same};
use super::sliced::{Composed, compose};
use super::vocabulary::{Aligned, Tokens, align};
use super::{Error, Rule};
use crate::adapter::Adapter;
use crate::calibration::Calibration;
use crate::checkpoint::{self, Checkpoint, DeltaFile};
use crate::host::PathExt;
use crate::recipe::{self, Proxies, Recipe, Source};
use std::collections::HashMap;
use std::path::Path;

/// A base and its experts.
#[derive(Clone, Debug)]
pub struct Family {
    /// The base.
    pub base: Checkpoint,
    /// Its configuration.
    pub settings: Settings,
    /// The experts, in the recipe's order.
    pub experts: Vec<Expert>,
    /// The output's vocabulary, where that is not simply the base's: all models are seen with its rows.
    pub tokens: Option<Tokens>,
}

/// One expert.
#[derive(Clone, Debug)]
pub struct Expert {
    /// Its name in the recipe.
    pub name: String,
    /// Its weights by the base's names, or what to add to the base's; of an adapter those that it holds whole.
    pub weights: Checkpoint,
    /// Its weights by its own names.
    pub own: Checkpoint,
    /// What is added to its weights, or where it has none to the base's.
    pub adapter: Option<Adapter>,
    /// Its configuration; empty for a task vector.
    pub settings: Settings,
    /// How the two belong together.
    pub matching: Matching,
    /// Whether `weights` are deltas.
    pub is_delta: bool,
    /// For deltas that a merge kept: what each is multiplied by, `alpha beta`; empty for others.
    pub factors: HashMap<String, f64>,
    /// The inputs of its layers, in a file.
    pub calibration: Option<Calibration>,
    /// The samples it is run on to capture them during the merge.
    pub proxies: Option<Proxies>,
}

impl Expert {
    /// The file with a tensor's whole values, or with what to add to the base's; none if there are none.
    pub fn values_of(&self, tensor: &str) -> Option<&Checkpoint> {
        let saved = self.adapter.as_ref().map(Adapter::saved);
        [saved, Some(&self.weights)].into_iter().flatten().find(|file| file.get(tensor).is_some())
    }

    /// Whether a tensor's difference comes from factors, or from factors too.
    pub fn has_factors(&self, tensor: &str) -> bool {
        self.adapter.as_ref().is_some_and(|adapter| adapter.has_factors(tensor))
    }

    /// Whether it may differ from the base in a tensor.
    pub fn changes(&self, tensor: &str) -> bool {
        self.values_of(tensor).is_some() || self.has_factors(tensor)
    }

    /// The base's name of each weight and its own, where the two differ; several of its own where the base has them as one.
    pub fn renamed(&self) -> impl Iterator<Item = (&str, &str)> {
        let renamed = self.matching.mapped.iter().filter(|(_, rule)| **rule != Rule::Tied);
        renamed.filter_map(|(name, _)| Some((name, self.matching.pairs.get(name)?))).flat_map(
            |(name, own)| {
                let parts = self.matching.own(own);
                parts.map(move |own| (name.as_str(), own))
            },
        )
    }
}

impl Family {
    /// Opens everything that the recipe names.
    pub fn open(recipe: &Recipe) -> Result<Family, Error> {
        let aligned = align(recipe)?;
        let aligned = aligned.as_ref();
        let (base, mut composed) = match compose(recipe, aligned)? {
            Some(Composed { base, experts }) => (base, experts.into_iter().map(Some).collect()),
            None => (open(&recipe.base_model, aligned)?, vec![None; recipe.models.len()]),
        };
        if base.names().next().is_none() {
            let (path, reason) = (base.path().to_path_buf(), "it holds no tensors".to_owned());
            return Err(checkpoint::Error::NotAModel { path, reason }.into());
        }
        let settings = Settings::open(&base)?;
        refuse_quantised(&base, &settings)?;
        let models = recipe.models.iter().zip(composed.drain(..));
        let experts =
            models.map(|(model, composed)| expert(recipe, (model, composed), (&base, &settings), aligned));
        let experts = experts.collect::<Result<_, _>>()?;
        Ok(Family { experts, base, settings, tokens: aligned.map(|aligned| aligned.tokens.clone()) })
    }
}

/// A model, with the rows of the output's vocabulary.
pub(super) fn open(path: &Path, aligned: Option<&Aligned>) -> Result<Checkpoint, Error> {
    let model = Checkpoint::open(path)?;
    match aligned {
        Some(aligned) => aligned.apply(model, path),
        None => Ok(model),
    }
}

fn expert(
    recipe: &Recipe,
    (model, composed): (&recipe::Model, Option<Checkpoint>),
    (base, base_settings): (&Checkpoint, &Settings),
    aligned: Option<&Aligned>,
) -> Result<Expert, Error> {
    let own = match (&model.source, composed) {
        (_, Some(composed)) => composed,
        (Source::Adapter { model: None, adapter }, None) => {
            return adapter_expert(recipe, model, adapter, base, base_settings);
        }
        (
            Source::Adapter { model: Some(path), .. } | Source::Checkpoint(path) | Source::Delta(path),
            None,
        ) => open(path, aligned)?,
    };
    let is_delta = matches!(model.source, Source::Delta(_));
    let settings = if is_delta { Settings::default() } else { Settings::open(&own)? };
    refuse_quantised(&own, &settings)?;
    let (seen, matched) = if is_delta {
        (own.clone(), match_delta(base, &own))
    } else {
        match_mixtures(Models { base, base_settings, expert: &own, expert_settings: &settings })?
    };
    let mut expert = Expert {
        name: model.name.clone(),
        weights: seen,
        matching: Matching::default(),
        factors: if is_delta { factors(model.source.path())? } else { HashMap::new() },
        calibration: None,
        proxies: None,
        settings,
        is_delta,
        own,
        adapter: None,
    };
    // settings first: a model of another kind differs in its tensors too, and its kind is the better answer
    weights_mean_the_same(base_settings, &expert, &recipe.allow_mismatch)?;
    expert.matching = matched.map_err(|reason| super::check::mismatch(base, &expert, reason))?;
    let pairs = expert.matching.pairs.iter().map(|(name, own)| (name.as_str(), own.as_str()));
    expert.weights = expert.weights.view(pairs);
    if let Source::Adapter { adapter, .. } = &model.source {
        let adapter = Adapter::open(adapter, base, &base_settings.config)?;
        expert.matching.lacks.retain(|name, _| !adapter.changes(name));
        expert.matching.left_out.extend(left_out(&adapter)?);
        expert.adapter = Some(adapter);
    }
    with_inputs(recipe, model, expert)
}

/// An adapter of the base as an expert.
fn adapter_expert(
    recipe: &Recipe,
    model: &recipe::Model,
    path: &Path,
    base: &Checkpoint,
    settings: &Settings,
) -> Result<Expert, Error> {
    let adapter = Adapter::open(path, base, &settings.config)?;
    let mut matching = Matching { prefix: adapter.prefix().cloned(), ..Matching::default() };
    let lacks = base.names().filter(|name| !adapter.changes(name));
    matching.lacks = lacks.map(|name| (name.to_owned(), Rule::NoFactors)).collect();
    matching.left_out = left_out(&adapter)?.into_iter().collect();
    if !recipe.allow_mismatch.iter().any(|key| key == "base_model_name_or_path") {
        matching.notes.extend(adapter.base().check(path, base)?);
    }
    let expert = Expert {
        name: model.name.clone(),
        weights: adapter.saved().clone(),
        own: adapter.file().clone(),
        matching,
        factors: HashMap::new(),
        calibration: None,
        proxies: None,
        settings: Settings::default(),
        is_delta: false,
        adapter: Some(adapter),
    };
    with_inputs(recipe, model, expert)
}

/// Whole tensors of an adapter that the base has no place for: heads of its own task are left out.
fn left_out(adapter: &Adapter) -> Result<Vec<(String, Rule)>, Error> {
    let rule = |(name, key): &(String, String)| {
        match is_task_part(name) {
        true => Ok((key.clone(), Rule::Head)),
        false => Err(checkpoint::Error::BadAdapter {
            path: adapter.path().to_path_buf(),
            reason: format!(
                "its tensor `{key}` is neither a factor nor a tensor of the base, and no rule of docs/tensors.md leaves it out; is it \
                 an adapter of another model?"
            ),
        }
        .into()),
    }
    };
    let elsewhere = adapter.elsewhere().iter().map(|key| Ok((key.clone(), Rule::Tower)));
    adapter.left().iter().map(rule).chain(elsewhere).collect()
}

/// The expert with what is known of the inputs of its layers.
fn with_inputs(recipe: &Recipe, model: &recipe::Model, mut expert: Expert) -> Result<Expert, Error> {
    if recipe.method.description().is_calibrated() {
        let mut names = HashMap::new();
        for (name, own) in expert.renamed() {
            // weights that the base has as one have one input
            names.entry(name.to_owned()).or_insert_with(|| own.to_owned());
        }
        match &model.calibration {
            recipe::Calibration::File(path) => {
                expert.calibration = Some(open_calibration(path)?.with_names(names));
            }
            recipe::Calibration::Data(proxies) => expert.proxies = Some(proxies.clone()),
            recipe::Calibration::Unset | recipe::Calibration::None => {}
        }
    }
    Ok(expert)
}

/// What the deltas of a file that a merge kept are multiplied by, so that base and deltas make the merged model; empty for
/// any other file.
fn factors(path: &Path) -> Result<HashMap<String, f64>, Error> {
    if !DeltaFile::is_one(path) {
        return Ok(HashMap::new());
    }
    let file = DeltaFile::open(path)?;
    let meta = file.meta();
    let factor = |entry: &checkpoint::DeltaEntry| entry.beta * if entry.alpha { meta.alpha } else { 1.0 };
    Ok(meta.tensors.iter().map(|(name, entry)| (name.clone(), factor(entry))).collect())
}

fn open_calibration(path: &Path) -> Result<Calibration, Error> {
    if !path.is_there() {
        return Err(Error::NoCalibrationFile { path: path.to_path_buf() });
    }
    Ok(Calibration::open(path)?)
}
