use crate::checkpoint;
use std::path::{Path, PathBuf};

/// What can be wrong with a calibration file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read, or is no safetensors file, or holds NaN or infinity.
    #[error(transparent)]
    File(#[from] checkpoint::Error),
    /// The file breaks the format `esmerge-calibration-1`.
    #[error("the calibration file {} breaks the format {}: {reason}", path.display(), super::FORMAT)]
    Format {
        /// The file.
        path: PathBuf,
        /// Which key breaks it, and how.
        reason: String,
    },
    /// Nothing can be written there.
    #[error("cannot write the calibration file {}: {reason}", path.display())]
    Out {
        /// Where it was to be.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// The file is sound but describes another model.
    #[error("the calibration file {} does not fit {}: {reason}", path.display(), expert.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The expert it was given for.
        expert: PathBuf,
        /// What does not fit, and what to do.
        reason: String,
    },
}

impl Error {
    pub(super) fn format(path: &Path, reason: impl Into<String>) -> Error {
        Error::Format { path: path.to_path_buf(), reason: reason.into() }
    }
}
