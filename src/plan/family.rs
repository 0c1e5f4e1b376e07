//! The models a recipe names, opened: headers only, no weights.

use super::Error;
use crate::calibration::Calibration;
use crate::checkpoint::{self, Checkpoint};
use crate::recipe::{self, Recipe, Source};
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
    /// The inputs of its layers.
    pub calibration: Option<Calibration>,
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
        let experts = recipe.models.iter().enumerate().map(|(i, model)| expert(recipe, i, model));
        Ok(Family { experts: experts.collect::<Result<_, _>>()?, base, model_type })
    }
}

fn expert(recipe: &Recipe, i: usize, model: &recipe::Model) -> Result<Expert, Error> {
    let needs_calibration = matches!(recipe.method, recipe::Method::Esm(_));
    let calibration = match &model.calibration {
        recipe::Calibration::File(path) if needs_calibration => Some(open_calibration(path)?),
        recipe::Calibration::Data { .. } if needs_calibration => {
            let key = format!("models[{i}].calibration");
            let message = "calibration captured from data during the run is not supported in this version; give a \
                           calibration file";
            return Err(recipe::Error::new(&recipe.path, None, key, message).into());
        }
        _ => None,
    };
    Ok(Expert {
        name: model.name.clone(),
        weights: Checkpoint::open(model.source.path())?,
        is_delta: matches!(model.source, Source::Delta(_)),
        calibration,
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
    let bad = |reason: String| Error::BadConfig { path: path.clone(), reason };
    let text = std::fs::read(&path).map_err(|e| bad(e.to_string()))?;
    let config: Config = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    Ok(config.model_type)
}
