use crate::backend;
use std::path::PathBuf;

/// Why there is no measurement, or no comparison.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was asked for cannot be.
    #[error("{0}")]
    Usage(String),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] backend::Error),
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is not what `esmerge bench --json` writes.
    #[error("{}: not a file of esmerge bench --json: {reason}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Two reports that say nothing about each other.
    #[error("{0}")]
    Incomparable(String),
}

impl From<crate::kernels::Error> for Error {
    fn from(error: crate::kernels::Error) -> Error {
        Error::Usage(error.to_string())
    }
}
