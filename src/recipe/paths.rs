//! Where the models are that a recipe names.

use std::env;
use std::path::{Path, PathBuf};

/// What names stand for.
#[derive(Clone, Copy)]
pub(super) struct Paths<'a> {
    /// Where relative paths start.
    pub folder: &'a Path,
    /// Models that earlier documents of the recipe have made.
    pub made: &'a [(String, PathBuf)],
}

impl Paths<'_> {
    /// A model: one that was made under this name, a path, or a model of the Hugging Face hub (`ORG/NAME`, `ORG/NAME@REVISION`) that
    /// is in its cache.
    pub fn find(&self, text: &str) -> PathBuf {
        if let Some((_, path)) = self.made.iter().find(|(name, _)| name == text) {
            return path.clone();
        }
        let path = self.folder.join(text);
        if path.exists() { path } else { in_cache(text, &caches()).unwrap_or(path) }
    }
}

/// The folders in which the hub's programs keep models, the first that is set first.
fn caches() -> Vec<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").map(|home| home.join(".cache/huggingface/hub"));
    [set("HF_HUB_CACHE"), set("HF_HOME").map(|home| home.join("hub")), home()].into_iter().flatten().collect()
}

/// The snapshot of a model; none if the name is not one of the hub's, or it is not there.
fn in_cache(text: &str, caches: &[PathBuf]) -> Option<PathBuf> {
    let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (owner, model) = name.split_once('/')?;
    if !plain(owner) || !plain(model) || !plain(revision) {
        return None;
    }
    let found = |cache: &PathBuf| {
        let repository = cache.join(format!("models--{owner}--{model}"));
        let named = std::fs::read_to_string(repository.join("refs").join(revision)).ok();
        let hash = named.as_deref().map_or(revision, str::trim);
        Some(repository.join("snapshots").join(hash)).filter(|snapshot| plain(hash) && snapshot.is_dir())
    };
    caches.iter().find_map(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_model_of_the_hub_is_its_snapshot() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--model-7B");
        fs::create_dir_all(repository.join("snapshots/abc123")).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "abc123\n").unwrap();
        let caches = [cache.path().to_path_buf()];
        let snapshot = Some(repository.join("snapshots/abc123"));
        assert_eq!(in_cache("org/model-7B", &caches), snapshot);
        assert_eq!(in_cache("org/model-7B@abc123", &caches), snapshot);
        for other in
            ["org/other", "org/model-7B@dev", "../model-7B", "org/model-7B/x", "model-7B", "/org/model-7B"]
        {
            assert_eq!(in_cache(other, &caches), None, "{other}");
        }
    }

    #[test]
    fn a_model_that_was_made_comes_before_a_path() {
        let made = [("first".to_owned(), PathBuf::from("/made/first"))];
        let paths = Paths { folder: Path::new("work"), made: &made };
        assert_eq!(paths.find("first"), PathBuf::from("/made/first"));
        assert_eq!(paths.find("models/a"), PathBuf::from("work/models/a"));
    }
}
