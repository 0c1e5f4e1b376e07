use crate::hub::Missing;
use std::fmt;
use std::path::{Path, PathBuf};

/// What is wrong with a recipe: where (file, line, path of the key), what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    recipe: PathBuf,
    line: Option<u64>,
    key: String,
    message: String,
    missing: Vec<Missing>,
}

impl Error {
    pub(crate) fn new(
        recipe: &Path,
        line: Option<u64>,
        key: impl Into<String>,
        message: impl Into<String>,
    ) -> Error {
        Error {
            recipe: recipe.to_path_buf(),
            line,
            key: key.into(),
            message: message.into(),
            missing: Vec::new(),
        }
    }

    /// The path of the key, `models[2].calibration`; empty if the file as a whole is meant.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Models of the Hugging Face hub that are not whole on this machine and may be what is wrong.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    pub(super) fn with_missing(self, missing: Vec<Missing>) -> Error {
        Error { missing, ..self }
    }

    /// The line, counted from 1, where one can be told.
    pub fn line(&self) -> Option<u64> {
        self.line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.recipe.display())?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": `{}`", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Error {}
