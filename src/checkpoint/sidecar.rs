//! The files beside the weights that make a folder a model: configuration, tokenizer, preprocessor.

use super::Error;
use crate::backend::Dtype;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Endings of files that belong to a model and are not weights.
const ENDINGS: [&str; 8] = ["json", "txt", "model", "vocab", "merges", "jinja", "tiktoken", "py"];

/// Copies the base's small files, its licence among them, into the output; with `dtype`, `config.json` gets that as its `torch_dtype`.
/// Folders one level down are searched too: sentence-transformers keeps `1_Pooling/config.json` there.
pub fn copy_sidecars(from: &Path, to: &Path, dtype: Option<Dtype>) -> Result<Vec<String>, Error> {
    let mut copied = Vec::new();
    for entry in sorted_entries(from)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if entry.path().is_dir() {
            copied.extend(copy_folder(&entry.path(), &to.join(&name), &name)?);
        } else if belongs(&name) {
            copy(&entry.path(), &to.join(&name))?;
            copied.push(name);
        }
    }
    if let Some(dtype) = dtype {
        set_config_dtype(&to.join("config.json"), dtype)?;
    }
    Ok(copied)
}

fn copy_folder(from: &Path, to: &Path, folder: &str) -> Result<Vec<String>, Error> {
    let entries = sorted_entries(from)?;
    // A folder with weights of its own is another model, not a part of this one.
    if entries.iter().any(|e| is_weights(&e.file_name().to_string_lossy())) {
        return Ok(Vec::new());
    }
    let mut copied = Vec::new();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_file() && belongs(&name) {
            fs::create_dir_all(to).map_err(Error::io("create", to))?;
            copy(&entry.path(), &to.join(&name))?;
            copied.push(format!("{folder}/{name}"));
        }
    }
    Ok(copied)
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    // Contents only: a read-only base must not give a read-only output.
    let bytes = fs::read(from).map_err(Error::io("read", from))?;
    fs::write(to, bytes).map_err(Error::io("write", to))
}

fn belongs(name: &str) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    let ours = matches!(name, "esmerge-report.json" | "recipe.yaml");
    let terms = name.starts_with("LICENSE") || name.starts_with("NOTICE");
    (terms || ENDINGS.contains(&ending)) && !name.ends_with(".index.json") && !ours
}

fn is_weights(name: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".pth", ".onnx"].iter().any(|end| name.ends_with(end))
}

fn sorted_entries(folder: &Path) -> Result<Vec<fs::DirEntry>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(Error::io("list", folder))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}

/// Loaders take the element type from `config.json`, so it must tell the truth about the merged weights.
fn set_config_dtype(path: &Path, dtype: Dtype) -> Result<(), Error> {
    let Ok(text) = fs::read(path) else { return Ok(()) };
    let Ok(Value::Object(mut config)) = serde_json::from_slice(&text) else { return Ok(()) };
    let name = Value::from(dtype.to_string());
    let mut changed = false;
    for key in ["torch_dtype", "dtype"] {
        if let Some(value) = config.get_mut(key).filter(|value| **value != name) {
            *value = name.clone();
            changed = true;
        }
    }
    if changed {
        let mut text = serde_json::to_vec_pretty(&config).map_err(|e| Error::io("write", path)(e.into()))?;
        text.push(b'\n');
        fs::write(path, text).map_err(Error::io("write", path))?;
    }
    Ok(())
}
