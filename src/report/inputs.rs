//! What a merge was made of.

use crate::adapter::Adapter;
use crate::checkpoint::{self, Checkpoint, hub_repository, settings};
use crate::host::PathExt;
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// A model that was read.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Input {
    /// How reports call it.
    pub name: String,
    /// `base`, `expert`, `task vector`, `adapter`, or `model of an adapter`.
    pub role: &'static str,
    /// Its name in the Hugging Face hub, if it came from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// Where it lay, in full.
    pub path: String,
    /// How messages of the run call its path.
    #[serde(skip)]
    pub given: String,
    /// Its weight in a weighted sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Its weights files.
    pub files: Vec<InputFile>,
}

/// A weights file.
#[derive(Clone, Debug, Serialize)]
pub struct InputFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its header.
    pub header_sha256: String,
}

impl Input {
    /// What can be told of a model, by its name in the hub or the last part of its path.
    pub fn of(
        model: &Checkpoint,
        role: &'static str,
        weight: Option<f64>,
    ) -> Result<Input, checkpoint::Error> {
        let path = std::path::absolute(model.path()).unwrap_or_else(|_| model.path().to_path_buf());
        let hub = hub_repository(&path).map(|(_, name)| name);
        let mut files: Vec<InputFile> = Vec::new();
        for tensor in model.names() {
            let Some((file, _)) = model.place(tensor) else { continue };
            let name = last_part(file.path());
            if files.last().is_none_or(|last| last.name != name) {
                files.push(InputFile { name, bytes: file.length(), header_sha256: file.header_hash()? });
            }
        }
        Ok(Input {
            name: hub.clone().unwrap_or_else(|| last_part(&path)),
            role,
            hub,
            path: path.display().to_string(),
            given: model.path().display().to_string(),
            weight,
            files,
        })
    }
}

impl Input {
    /// What can be told of an adapter.
    pub fn of_adapter(adapter: &Adapter) -> Result<Input, checkpoint::Error> {
        let path = std::path::absolute(adapter.path()).unwrap_or_else(|_| adapter.path().to_path_buf());
        let given = adapter.path().display().to_string();
        let (hub, path) = (hub_repository(&path).map(|(_, name)| name), path.display().to_string());
        Ok(Input { hub, path, given, ..Input::of(adapter.file(), "adapter", None)? })
    }
}

/// What a model is called: its name in the hub, else the last part of its path.
pub(super) fn name_of(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    hub_repository(&path).map_or_else(|| last_part(&path), |(_, name)| name)
}

/// The last part of a path, as a name.
fn last_part(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Files that only models of one library have.
const LIBRARIES: [(&str, &str); 3] = [
    ("modules.json", "sentence-transformers"),
    ("open_clip_config.json", "open_clip"),
    ("model_index.json", "diffusers"),
];
/// Keys of `config.json` that only one library writes.
const KEYS: [(&str, &str); 3] =
    [("_class_name", "diffusers"), ("model_type", "transformers"), ("pretrained_cfg", "timm")];

/// The library that loads the model in a folder.
pub fn library(folder: &Path) -> Option<&'static str> {
    let by_file = LIBRARIES.iter().find(|(file, _)| folder.join(file).leads_to_file());
    let config = || settings::read::<Value>(&folder.join("config.json")).ok();
    let by_key = || config().and_then(|config| KEYS.iter().find(|(key, _)| config.get(key).is_some()));
    by_file.or_else(by_key).map(|(_, library)| *library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_told_by_the_files_of_the_model() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(library(folder.path()), None);
        for (file, text, expected) in [
            ("config.json", r#"{"architecture": "vit", "pretrained_cfg": {}}"#, "timm"),
            ("config.json", r#"{"model_type": "bert", "eps": Infinity}"#, "transformers"),
            ("config.json", r#"{"_class_name": "UNet2DModel"}"#, "diffusers"),
            ("open_clip_config.json", "{}", "open_clip"),
            ("modules.json", "[]", "sentence-transformers"),
        ] {
            std::fs::write(folder.path().join(file), text).unwrap();
            assert_eq!(library(folder.path()), Some(expected));
        }
    }
}
