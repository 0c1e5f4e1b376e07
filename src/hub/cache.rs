//! The cache of the hub's programs: `models--ORG--NAME/{refs/REVISION, snapshots/COMMIT/FILE -> blobs/ETAG}`.

use super::name::{Name, is_plain};
use crate::checkpoint::{is_weights, missing_shard};
use crate::host::PathExt;
use crate::host::fs;
use std::env;
use std::path::{Path, PathBuf};

/// The folders in which the hub's programs keep models, the first that is set first.
pub(super) fn caches() -> Vec<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").or_else(|| set("USERPROFILE")).map(|home| home.join(".cache/huggingface/hub"));
    [set("HF_HUB_CACHE"), set("HF_HOME").map(|home| home.join("hub")), home()].into_iter().flatten().collect()
}

/// The folder of a model.
pub(super) fn repository(cache: &Path, name: &Name) -> PathBuf {
    cache.join(format!("models--{}", name.repository().replace('/', "--")))
}

/// The snapshot of a model; none if it is not there.
pub(super) fn snapshot(cache: &Path, name: &Name) -> Option<PathBuf> {
    let repository = repository(cache, name);
    let named = fs::read_to_string(repository.join("refs").join(name.revision())).ok();
    let commit = named.as_deref().map_or(name.revision(), str::trim);
    Some(repository.join("snapshots").join(commit))
        .filter(|snapshot| is_plain(commit) && snapshot.leads_to_folder())
}

/// Why a snapshot is not complete; none if it seems to be.
pub(super) fn gap(snapshot: &Path) -> Option<String> {
    let names = names(snapshot);
    if let Some(name) = names.iter().find(|name| !snapshot.join(name).is_there()) {
        return Some(format!("its file {name} leads to nothing"));
    }
    if let Some(shard) = missing_shard(snapshot) {
        return Some(format!("the shard {shard} of its index is missing"));
    }
    let unfinished = unfinished(snapshot);
    let unfinished = unfinished.first();
    if !names.iter().any(|name| is_weights(name)) {
        let blob = unfinished.map_or(String::new(), |blob| format!(", and its blob {blob} is not finished"));
        return Some(format!("it has no weights{blob}"));
    }
    let blob = unfinished.filter(|_| self::names(&snapshot.join("..")).len() == 1)?;
    Some(format!("its blob {blob} is not finished (remove that if it is left from something else)"))
}

/// Blobs whose download was begun, by this program or another of the hub's; those of other snapshots are among them.
fn unfinished(snapshot: &Path) -> Vec<String> {
    let blobs = snapshot.join("../../blobs");
    let begun = |name: &String| name.ends_with(".incomplete") || name.ends_with(".part");
    let open = |name: &String| name.split('.').next().is_some_and(|etag| !blobs.join(etag).is_there());
    names(&blobs).into_iter().filter(|name| begun(name) && open(name)).collect()
}

/// The names in a folder, sorted; none where there is no such folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}
