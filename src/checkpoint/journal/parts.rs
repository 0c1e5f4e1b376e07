//! The outputs of a recipe's earlier documents, kept until the last is complete.

use super::super::{Error, temporary};
use super::identity::Identity;
use super::lock::{self, Lock};
use super::{Earlier, refusal};
use crate::host::PathExt;
use crate::host::fs;
use std::path::{Path, PathBuf};

/// What the name of the folder ends in.
const ENDING: &str = ".parts.esmerge";
/// What the name of a finished part's identity ends in.
const DONE: &str = ".done.json";

/// The folder of the parts of an output, which outlives a run that does not finish once a part is done.
#[derive(Debug)]
pub struct Parts {
    folder: temporary::Temporary,
    lock: Lock,
}

impl Parts {
    /// Takes the folder that belongs to an output.
    pub fn open(wanted: &Path, earlier: Earlier, waiting: &mut dyn FnMut(&str)) -> Result<Parts, Error> {
        let folder = wanted.with_file_name(temporary::beside(wanted, ENDING));
        let folder = temporary::Temporary::shared(folder)?;
        let path = folder.path().join(format!("run{}", lock::ENDING));
        let lock = Lock::take(&path, &wanted.display().to_string(), waiting)?;
        if earlier == Earlier::Discard {
            super::discard(folder.path(), &path)?;
        }
        Ok(Parts { folder, lock })
    }

    /// Where a part is written.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Whether a part of this identity was finished; an error if one of another was.
    pub fn is_done(&self, name: &str, identity: &Identity) -> Result<bool, Error> {
        let Some(before) = super::read_plan(&self.mark(name))? else { return Ok(false) };
        match identity.changes(&before) {
            changes if changes.is_empty() => Ok(self.path(name).leads_to_folder()),
            changes => Err(refusal(self.folder.path(), &changes)),
        }
    }

    /// Notes that a part is finished.
    pub fn done(&self, name: &str, identity: &Identity) -> Result<(), Error> {
        let plan =
            serde_json::to_vec(identity).map_err(|e| Error::io("write", &self.mark(name))(e.into()))?;
        super::create(&self.mark(name), name, &plan)?;
        temporary::keep(self.folder.path());
        Ok(())
    }

    fn mark(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}{DONE}"))
    }

    /// Removes everything.
    pub fn finish(self) -> Result<(), Error> {
        let path = self.folder.path().to_path_buf();
        drop(self.lock);
        fs::remove_dir_all(&path).map_err(Error::io("remove", &path))
    }
}
