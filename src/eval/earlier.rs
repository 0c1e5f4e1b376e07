//! An earlier evaluation, to compare with.

use crate::data::{Error, read_json};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What is needed of the report that `esmerge eval --json` printed.
#[derive(Clone, Debug, Deserialize)]
pub struct Earlier {
    #[serde(skip)]
    path: PathBuf,
    /// The model.
    pub model: String,
    split: String,
    tasks: Vec<Answers>,
}

#[derive(Clone, Debug, Deserialize)]
struct Answers {
    task: String,
    answers: String,
}

impl Earlier {
    /// Reads a report.
    pub fn open(path: &Path) -> Result<Earlier, Error> {
        let report: Result<Earlier, _> = serde_json::from_value(read_json(path)?);
        let report =
            report.map_err(|e| Error::bad(path, format!("is not a report of `esmerge eval --json`: {e}")))?;
        Ok(Earlier { path: path.to_path_buf(), ..report })
    }

    /// Which samples of a task were right then; an error unless they are the same samples.
    pub fn answers(&self, task: &str, split: &str, samples: usize) -> Result<Vec<bool>, Error> {
        let Some(found) = self.tasks.iter().find(|t| t.task == task) else {
            return Err(Error::bad(&self.path, format!("has no task `{task}` to compare with")));
        };
        if self.split != split || found.answers.len() != samples {
            let reason = format!(
                "is about {} samples of `{task}`, {}, and cannot be compared with {samples} of {split}; evaluate both models \
                 on the same samples",
                found.answers.len(),
                self.split
            );
            return Err(Error::bad(&self.path, reason));
        }
        Ok(found.answers.bytes().map(|b| b == b'1').collect())
    }
}
