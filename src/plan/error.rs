use crate::{calibration, checkpoint, data, recipe};
use std::path::PathBuf;

/// Why a recipe cannot be carried out on the models it names.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key of the recipe does not fit the models, or asks for something that is not supported yet.
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    /// A weights file cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// A calibration file cannot be used.
    #[error(transparent)]
    Calibration(#[from] calibration::Error),
    /// A model that has to be run, or the samples it is to be run on, cannot be used.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// The recipe names a calibration file that is not there.
    #[error("the calibration file {} does not exist; check the path in the recipe, or capture it again", path.display())]
    NoCalibrationFile {
        /// The file.
        path: PathBuf,
    },
    /// The base's `config.json` cannot be read.
    #[error("{} cannot be read as a model configuration: {reason}", path.display())]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Two models that should have the same tensors do not.
    #[error("the expert `{expert}` ({}) does not fit the base {}: {reason}", path.display(), base.display())]
    Mismatch {
        /// The expert's name.
        expert: String,
        /// Its path.
        path: PathBuf,
        /// The base's path.
        base: PathBuf,
        /// Which tensor, and how it differs.
        reason: String,
    },
    /// An expert's weights mean something else than the base's.
    #[error("the expert `{expert}` is of another kind than the base: {reason}")]
    OtherSettings {
        /// The expert's name.
        expert: String,
        /// Which key differs, where, and what to do.
        reason: String,
    },
    /// An expert lacks calibration for a layer.
    #[error(
        "the calibration file {} of expert `{expert}` has no inputs of `{weight}`, which merge_method {method} needs: \
         capture the layer (key `{weight}.input` or `.gram`, or an entry in `alias`){}",
        path.display(),
        key.map_or_else(String::new, |key| format!(", or take it out with `{key}`"))
    )]
    NotCalibrated {
        /// The expert's name.
        expert: String,
        /// Its calibration file.
        path: PathBuf,
        /// The weight.
        weight: String,
        /// The merge method.
        method: &'static str,
        /// The key of the recipe that names the layers, if there is one.
        key: Option<&'static str>,
    },
    /// An expert's calibration has no mean input for a routed layer.
    #[error(
        "the calibration file {} of expert `{expert}` has a Gram matrix of the inputs of `{weight}` but not their mean, by \
         which merge_method esm++ routes: capture it again with `{weight}.mean` (or with `.input`), or take the layer out \
         with `routed_layers`",
        path.display()
    )]
    NoPrototype {
        /// The expert's name.
        expert: String,
        /// Its calibration file.
        path: PathBuf,
        /// The weight under which the Gram matrix is stored.
        weight: String,
    },
    /// A matrix that was named as a routed layer does not belong to a linear layer.
    #[error(
        "`{weight}` of {} cannot have low-rank experts: only the weights of linear layers can (names that end in \
         `.weight` or `in_proj_weight`); take it out of `routed_layers`",
        path.display()
    )]
    NotLinear {
        /// The tensor.
        weight: String,
        /// The base.
        path: PathBuf,
    },
    /// The model stores something that cannot be merged correctly.
    #[error("{}: {reason}", path.display())]
    Unsupported {
        /// The model.
        path: PathBuf,
        /// What, and what to do.
        reason: String,
    },
}
