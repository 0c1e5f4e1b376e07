//! A folder that appears under its name only when it is complete.

use super::Error;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A temporary folder beside the wanted one, renamed by [`finish`](OutputDir::finish); dropped before that, it
/// disappears with everything in it.
#[derive(Debug)]
pub struct OutputDir {
    temporary: TempDir,
    wanted: PathBuf,
    /// Parents created for it, outermost first; removed again unless the output is finished.
    parents: Parents,
}

impl OutputDir {
    /// Checks that `wanted` can become an output folder (it does not exist, or is an empty folder) and creates the
    /// temporary one.
    pub fn create(wanted: &Path) -> Result<OutputDir, Error> {
        // A link to an empty folder stands for that folder; renaming over the link itself would fail.
        let wanted = if wanted.is_symlink() {
            fs::canonicalize(wanted).unwrap_or(wanted.into())
        } else {
            wanted.into()
        };
        let refuse = |reason: &str| Error::Output { path: wanted.clone(), reason: reason.to_owned() };
        if wanted.is_dir() {
            if fs::read_dir(&wanted).map_err(Error::io("list", &wanted))?.next().is_some() {
                return Err(refuse("the folder is not empty; name a new folder, or empty this one first"));
            }
        } else if wanted.symlink_metadata().is_ok() {
            return Err(refuse("a file of that name exists; name a new folder"));
        }
        let Some(name) = wanted.file_name() else {
            return Err(refuse("the path ends in no folder name; name a new folder"));
        };
        let parent = match wanted.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if let Some(file) = parent.ancestors().find(|p| p.exists() && !p.is_dir()) {
            return Err(refuse(&format!("{} is a file, not a folder", file.display())));
        }
        let parents = Parents::create(parent)?;
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        let temporary = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
        let temporary = temporary.map_err(Error::io("create a folder in", parent))?;
        Ok(OutputDir { temporary, wanted, parents })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// The final path.
    pub fn wanted(&self) -> &Path {
        &self.wanted
    }

    /// Gives the folder its name.
    pub fn finish(self) -> Result<(), Error> {
        let OutputDir { temporary, wanted, mut parents } = self;
        if wanted.is_dir() {
            // Fails when something was put there meanwhile.
            fs::remove_dir(&wanted).map_err(Error::io("replace the empty folder", &wanted))?;
        }
        fs::rename(temporary.path(), &wanted).map_err(Error::io("rename the finished output to", &wanted))?;
        parents.0.clear();
        let _ = temporary.keep(); // it is no longer under that name: nothing to remove
        Ok(())
    }
}

/// Folders created on the way to an output; dropped, those that hold nothing are removed.
#[derive(Debug)]
pub(crate) struct Parents(Vec<PathBuf>);

impl Parents {
    /// Makes a folder and those it lies in, where they are missing.
    pub(crate) fn create(parent: &Path) -> Result<Parents, Error> {
        let missing = parent.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists());
        let mut missing: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
        missing.reverse();
        let mut created = Parents(Vec::new());
        for folder in missing {
            fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
            created.0.push(folder);
        }
        Ok(created)
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            let _ = fs::remove_dir(folder); // only while empty: someone else may use it by now
        }
    }
}
