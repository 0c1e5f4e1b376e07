//! Where a calibration file may be put.

use super::{Error, FORMAT};
use crate::checkpoint::TensorFile;
use crate::host::PathExt;
use std::path::Path;

/// Refuses a path, before any work, where a file is that is not a calibration: it would be lost. `force` takes any file.
pub fn check(path: &Path, force: bool) -> Result<(), Error> {
    let refused = |reason: &str| Err(Error::Out { path: path.to_path_buf(), reason: reason.to_owned() });
    if path.leads_to_folder() || path.file_name().is_none() {
        return refused("it is a folder; name a file in it");
    }
    if let Some(other) = path.ancestors().skip(1).find(|p| p.is_there()).filter(|p| !p.leads_to_folder()) {
        return refused(&format!("{} is not a folder", other.display()));
    }
    if !path.is_there() {
        return Ok(());
    }
    if !path.leads_to_file() {
        return refused("it is not a regular file");
    }
    let is_calibration =
        || TensorFile::open(path).is_ok_and(|f| f.metadata().get("format").is_some_and(|f| f == FORMAT));
    if force || is_calibration() {
        return Ok(());
    }
    refused("the file exists and is no calibration file; choose another name, or replace it with --force")
}
