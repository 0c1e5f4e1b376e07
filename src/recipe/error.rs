use std::fmt;
use std::path::{Path, PathBuf};

/// What is wrong with a recipe: where (file, line, path of the key), what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    recipe: PathBuf,
    line: Option<u64>,
    key: String,
    message: String,
}

impl Error {
    pub(crate) fn new(
        recipe: &Path,
        line: Option<u64>,
        key: impl Into<String>,
        message: impl Into<String>,
    ) -> Error {
        Error { recipe: recipe.to_path_buf(), line, key: key.into(), message: message.into() }
    }

    /// The path of the key, `models[2].calibration`; empty if the file as a whole is meant.
    pub fn key(&self) -> &str {
        &self.key
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
