//! Files and folders onto the disk, before names are given that promise they are there.

use super::{Error, parent};
use crate::host::fs::{self, File};
use std::io;
use std::path::Path;

/// Everything in a folder, and the folder.
pub(super) fn folder(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folder(&entry.path())?;
        } else {
            // Windows flushes only what is open for writing.
            File::options().write(true).open(entry.path())?.sync_all()?;
        }
    }
    entries(path)
}

/// The names in a folder. Some file systems cannot, and need not.
pub(super) fn entries(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        match File::open(path)?.sync_all() {
            Err(e) if e.kind() != io::ErrorKind::InvalidInput => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Gives a file that has reached the disk its name, over a file that has it.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    let renamed = fs::rename(from, to).and_then(|()| entries(parent(to)));
    renamed.map_err(Error::io("write", to))
}
