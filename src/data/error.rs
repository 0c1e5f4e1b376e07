use crate::hub::Missing;
use crate::{checkpoint, files, model};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What can be wrong with models to run and with samples.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of tensors cannot be read.
    #[error(transparent)]
    File(#[from] checkpoint::Error),
    /// A model of the Hugging Face hub is not whole on this machine.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Bad {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The model cannot be run, or not on these samples.
    #[error("{}: {source}", path.display())]
    Model {
        /// The model.
        path: PathBuf,
        /// Why.
        source: model::Error,
    },
}

impl Error {
    pub(crate) fn bad(path: &Path, reason: impl Into<String>) -> Error {
        Error::Bad { path: path.to_path_buf(), reason: reason.into() }
    }

    /// For `map_err`: an error of the model at `path`.
    pub fn model(path: &Path) -> impl Fn(model::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Model { path: path.clone(), source }
    }
}

/// Reads a text file of at most `limit` bytes.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String, Error> {
    let bytes = files::read(path, limit).map_err(|e| Error::bad(path, format!("cannot be read: {e}")))?;
    String::from_utf8(bytes).map_err(|_| Error::bad(path, "is not UTF-8 text"))
}

/// Reads a JSON file of settings.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value, Error> {
    crate::checkpoint::settings::read(path).map_err(|e| match e.kind() {
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            Error::bad(path, format!("is not valid JSON: {e}"))
        }
        _ => Error::bad(path, format!("cannot be read: {e}")),
    })
}
