use std::io;
use std::path::{Path, PathBuf};

/// What can be wrong with a file of weights or with the place a model is written to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as an infinitive.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Nothing lies at the given path.
    #[error("{} does not exist; {hint}", path.display())]
    NotFound {
        /// The missing path.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
    },
    /// A folder in which the weights could not be told apart, or that holds none.
    #[error("{}: {reason}", path.display())]
    NotAModel {
        /// The folder.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A file that breaks the safetensors format.
    #[error("{} is not a valid safetensors file: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong in it and what to do.
        reason: String,
    },
    /// A file that breaks the GGUF format, or holds what is not read of it.
    #[error("{} cannot be read as GGUF: {reason}", path.display())]
    BadGguf {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// Another file, or other contents, than when the header was read.
    #[error(
        "{} changed while it was being read (something saved or downloaded it again), so that its values would be a mixture; \
         run this again when it is complete",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A shard index that does not fit its shards.
    #[error("{}: {reason}", path.display())]
    BadIndex {
        /// The index.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A tensor that was asked for is not there.
    #[error("{} has no tensor `{tensor}`", path.display())]
    NoTensor {
        /// The model.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A NaN or an infinity among the weights.
    #[error(
        "{}: tensor `{tensor}` holds {value} at element {index} (counted from 0, row-major); merging it would spoil \
         every model it enters, so restore or replace this file",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Position in the flattened tensor.
        index: usize,
        /// "NaN" or "an infinity".
        value: &'static str,
    },
    /// A file beside the weights cannot be used.
    #[error("{}: {reason}", path.display())]
    Sidecar {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The output cannot be written where it was asked for.
    #[error("cannot write to {}: {reason}", path.display())]
    Output {
        /// The output path.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// Work of another run stands in the way, or cannot be gone on with.
    #[error("{}: {reason}", path.display())]
    Journal {
        /// The folder of that work.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The settings of an adapter cannot be used.
    #[error("{}: {reason}", path.display())]
    BadAdapter {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file that should be an `esmerge-router-1` file is not one.
    #[error("{}: {reason}", path.display())]
    BadRouter {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file that should be an `esmerge-delta-1` file is not one, or does not fit the base.
    #[error("{}: {reason}", path.display())]
    BadDelta {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
}

impl Error {
    /// For `map_err`: an [`Error::Io`] about `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }
}
