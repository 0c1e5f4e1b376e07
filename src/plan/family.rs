//! The models a recipe names, opened: headers only, no weights.

use super::Error;
use crate::calibration::Calibration;
use crate::checkpoint::{self, Checkpoint, settings};
use crate::recipe::{self, Proxies, Recipe, Source};
use serde::Deserialize;
use std::path::Path;

/// A base and its experts.
#[derive(Clone, Debug)]
pub struct Family {
    /// The base.
    pub base: Checkpoint,
    /// `model_type` of the base's `config.json`.
    pub model_type: Option<String>,
    /// The experts, in the recipe's order.
    pub experts: Vec<Expert>,
}

/// One expert.
#[derive(Clone, Debug)]
pub struct Expert {
    /// Its name in the recipe.
    pub name: String,
    /// Its weights, or what to add to the base's.
    pub weights: Checkpoint,
    /// Whether `weights` are deltas.
    pub is_delta: bool,
    /// The inputs of its layers, in a file.
    pub calibration: Option<Calibration>,
    /// The samples it is run on to capture them during the merge.
    pub proxies: Option<Proxies>,
}

impl Family {
    /// Opens everything that the recipe names.
    pub fn open(recipe: &Recipe) -> Result<Family, Error> {
        let base = Checkpoint::open(&recipe.base_model)?;
        if base.names().next().is_none() {
            let (path, reason) = (base.path().to_path_buf(), "it holds no tensors".to_owned());
            return Err(checkpoint::Error::NotAModel { path, reason }.into());
        }
        let model_type = model_type(&base)?;
        let experts = recipe.models.iter().map(|model| expert(recipe, model));
        Ok(Family { experts: experts.collect::<Result<_, _>>()?, base, model_type })
    }
}

fn expert(recipe: &Recipe, model: &recipe::Model) -> Result<Expert, Error> {
    let needs_calibration = matches!(recipe.method, recipe::Method::Esm(_));
    let calibration = match &model.calibration {
        recipe::Calibration::File(path) if needs_calibration => Some(open_calibration(path)?),
        _ => None,
    };
    let proxies = match &model.calibration {
        recipe::Calibration::Data(proxies) if needs_calibration => Some(proxies.clone()),
        _ => None,
    };
    Ok(Expert {
        name: model.name.clone(),
        weights: Checkpoint::open(model.source.path())?,
        is_delta: matches!(model.source, Source::Delta(_)),
        calibration,
        proxies,
    })
}

fn open_calibration(path: &Path) -> Result<Calibration, Error> {
    if !path.exists() {
        return Err(Error::NoCalibrationFile { path: path.to_path_buf() });
    }
    Ok(Calibration::open(path)?)
}

#[derive(Deserialize)]
struct Config {
    model_type: Option<String>,
}

fn model_type(base: &Checkpoint) -> Result<Option<String>, Error> {
    let Some(path) = base.folder().map(|f| f.join("config.json")).filter(|p| p.is_file()) else {
        return Ok(None);
    };
    let config: Config =
        settings::read(&path).map_err(|e| Error::BadConfig { path, reason: e.to_string() })?;
    Ok(config.model_type)
}
