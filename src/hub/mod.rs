//! Models of the Hugging Face hub: their names, the cache that the hub's programs share, and fetching what it lacks.

mod cache;
#[cfg(feature = "cli")]
mod choice;
#[cfg(feature = "cli")]
mod fetch;
mod name;

#[cfg(feature = "cli")]
pub use fetch::{FetchError, FetchProgress, fetch};
pub use name::Name;

use crate::host::PathExt;
use cache::caches;
use std::fmt;
use std::path::{Path, PathBuf};

/// A model that was named and is not whole on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which.
    pub name: Name,
    /// The cache it belongs in.
    pub cache: PathBuf,
    /// What is lacking.
    pub gap: Gap,
}

/// What the cache lacks of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// All of it.
    Absent,
    /// Some of its files, and why that is thought.
    Incomplete(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Missing { name, cache, gap } = self;
        match gap {
            Gap::Absent => write!(
                f,
                "`{name}` does not exist, neither as a path nor as a model in the Hugging Face cache {}; check the path, or let \
                 --download fetch the model",
                cache.display()
            ),
            Gap::Incomplete(why) => write!(
                f,
                "`{name}` is in the Hugging Face cache {}, but its download is not complete: {why}; --download fetches the rest",
                cache.display()
            ),
        }
    }
}

impl std::error::Error for Missing {}

/// Where a model lies that is named by a path, from `folder` on, or by its name in the hub, and what of it is not there.
pub fn find(folder: &Path, text: &str) -> (PathBuf, Option<Missing>) {
    find_in(folder, text, &caches())
}

fn find_in(folder: &Path, text: &str, caches: &[PathBuf]) -> (PathBuf, Option<Missing>) {
    let path = folder.join(text);
    let (false, Some(name)) = (path.is_there(), Name::parse(text)) else { return (path, None) };
    for cache in caches {
        if let Some(snapshot) = cache::snapshot(cache, &name) {
            let missing = cache::gap(&snapshot).map(|why| Missing {
                name,
                cache: cache.clone(),
                gap: Gap::Incomplete(why),
            });
            return (snapshot, missing);
        }
    }
    let missing = caches.first().map(|cache| Missing { name, cache: cache.clone(), gap: Gap::Absent });
    (path, missing)
}

/// The path of a model that is there.
///
/// # Errors
/// Says what the cache lacks of it. A path that is none of the hub's names is given back as it is.
pub fn existing(text: &str) -> Result<PathBuf, Missing> {
    match find(Path::new(""), text) {
        (path, None) => Ok(path),
        (_, Some(missing)) => Err(missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A cache with one snapshot, `abc123` of `org/model-7B`.
    fn cached(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--model-7B");
        let snapshot = repository.join("snapshots/abc123");
        for folder in [&snapshot, &repository.join("refs"), &repository.join("blobs")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(repository.join("refs/main"), "abc123\n").unwrap();
        files.iter().for_each(|(name, text)| fs::write(snapshot.join(name), text).unwrap());
        (cache, snapshot)
    }

    fn look_up(cache: &tempfile::TempDir, text: &str) -> (PathBuf, Option<Gap>) {
        let (path, missing) = find_in(Path::new("work"), text, &[cache.path().to_path_buf()]);
        (path, missing.map(|missing| missing.gap))
    }

    #[test]
    fn a_model_of_the_hub_is_its_snapshot() {
        let (cache, snapshot) = cached(&[("model.safetensors", "")]);
        assert_eq!(look_up(&cache, "org/model-7B"), (snapshot.clone(), None));
        assert_eq!(look_up(&cache, "org/model-7B@abc123"), (snapshot, None));
        for absent in ["org/other", "org/model-7B@dev"] {
            assert_eq!(look_up(&cache, absent), (Path::new("work").join(absent), Some(Gap::Absent)));
        }
        for path in ["../model-7B", "org/model-7B/x", "model-7B", "/org/model-7B", "org/a@../../b", "org/.."]
        {
            assert_eq!(look_up(&cache, path), (Path::new("work").join(path), None), "{path}");
        }
    }

    #[test]
    fn what_an_incomplete_snapshot_lacks_is_said() {
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        let sharded = [("model.safetensors.index.json", index), ("model-1.safetensors", "")];
        for (files, unfinished, word) in [
            (&sharded[..], None, "model-2.safetensors"),
            (&[("config.json", "{}")], None, "no weights"),
            (&[("config.json", "{}")], Some("aa.incomplete"), "aa.incomplete"),
            (&[("config.json", "{}"), ("model.safetensors", "")], Some("bb.part"), "bb.part"),
        ] {
            let (cache, snapshot) = cached(files);
            if let Some(blob) = unfinished {
                fs::write(snapshot.join("../../blobs").join(blob), "").unwrap();
            }
            let (path, gap) = look_up(&cache, "org/model-7B");
            assert_eq!(path, snapshot);
            assert!(matches!(&gap, Some(Gap::Incomplete(why)) if why.contains(word)), "{word}: {gap:?}");
        }
    }
}
