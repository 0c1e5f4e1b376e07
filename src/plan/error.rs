use crate::{calibration, checkpoint, recipe};
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
    /// An expert lacks calibration for a layer.
    #[error(
        "the calibration file {} of expert `{expert}` has no inputs of `{weight}`, which merge_method esm needs: capture \
         the layer (key `{weight}.input` or `.gram`, or an entry in `alias`), or take it out with `layers`",
        path.display()
    )]
    NotCalibrated {
        /// The expert's name.
        expert: String,
        /// Its calibration file.
        path: PathBuf,
        /// The weight.
        weight: String,
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
