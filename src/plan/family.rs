//! The models a recipe names, opened: headers and settings only, no weights.

use super::matching::{Matching, Models, match_delta, match_tensors};
use super::quantised::refuse_quantised;
use super::settings::{Settings, weights_mean_the_same};
use super::sliced::{Composed, compose};
use super::{Error, Rule};
use crate::calibration::Calibration;
use crate::checkpoint::{self, Checkpoint, DeltaFile};
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
}

/// One expert.
#[derive(Clone, Debug)]
pub struct Expert {
    /// Its name in the recipe.
    pub name: String,
    /// Its weights by the base's names, or what to add to the base's.
    pub weights: Checkpoint,
    /// Its weights by its own names.
    pub own: Checkpoint,
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
    /// Its own name of each weight -> the base's, where the two differ.
    pub fn names_of_base(&self) -> HashMap<String, String> {
        let renamed = self.matching.mapped.iter().filter(|(_, rule)| **rule != Rule::Tied);
        let pair = |(name, _): (&String, &Rule)| Some((self.matching.pairs.get(name)?.clone(), name.clone()));
        renamed.filter_map(pair).collect()
    }
}

impl Family {
    /// Opens everything that the recipe names.
    pub fn open(recipe: &Recipe) -> Result<Family, Error> {
        let (base, mut composed) = match compose(recipe)? {
            Some(Composed { base, experts }) => (base, experts.into_iter().map(Some).collect()),
            None => (Checkpoint::open(&recipe.base_model)?, vec![None; recipe.models.len()]),
        };
        if base.names().next().is_none() {
            let (path, reason) = (base.path().to_path_buf(), "it holds no tensors".to_owned());
            return Err(checkpoint::Error::NotAModel { path, reason }.into());
        }
        let settings = Settings::open(&base)?;
        refuse_quantised(&base, &settings)?;
        let models = recipe.models.iter().zip(composed.drain(..));
        let experts = models.map(|(model, composed)| expert(recipe, (model, composed), &base, &settings));
        let experts = experts.collect::<Result<_, _>>()?;
        Ok(Family { experts, base, settings })
    }
}

fn expert(
    recipe: &Recipe,
    (model, composed): (&recipe::Model, Option<Checkpoint>),
    base: &Checkpoint,
    base_settings: &Settings,
) -> Result<Expert, Error> {
    let own = match composed {
        Some(composed) => composed,
        None => Checkpoint::open(model.source.path())?,
    };
    let is_delta = matches!(model.source, Source::Delta(_));
    let settings = if is_delta { Settings::default() } else { Settings::open(&own)? };
    refuse_quantised(&own, &settings)?;
    let matched = if is_delta {
        match_delta(base, &own)
    } else {
        match_tensors(Models { base, base_settings, expert: &own, expert_settings: &settings })
    };
    let mut expert = Expert {
        name: model.name.clone(),
        weights: own.clone(),
        matching: Matching::default(),
        factors: if is_delta { factors(model.source.path())? } else { HashMap::new() },
        calibration: None,
        proxies: None,
        settings,
        is_delta,
        own,
    };
    // settings first: a model of another kind differs in its tensors too, and its kind is the better answer
    weights_mean_the_same(base_settings, &expert, &recipe.allow_mismatch)?;
    expert.matching = matched.map_err(|reason| super::check::mismatch(base, &expert, reason))?;
    let pairs = expert.matching.pairs.iter().map(|(name, own)| (name.as_str(), own.as_str()));
    expert.weights = expert.own.view(pairs);
    if recipe.method.description().calibration {
        let names = expert.names_of_base().into_iter().map(|(own, name)| (name, own)).collect();
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
    if !path.exists() {
        return Err(Error::NoCalibrationFile { path: path.to_path_buf() });
    }
    Ok(Calibration::open(path)?)
}
