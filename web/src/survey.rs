//! What somebody chose, and what there is to merge by.

use crate::{Result, json, words};
use esmerge::adapter::Adapter;
use esmerge::calibration;
use esmerge::checkpoint::{Checkpoint, TensorFile};
use esmerge::data::{Task, is_image};
use esmerge::host::disk;
use esmerge::method::methods;
use esmerge::method::table::Strength;
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use wasm_bindgen::prelude::*;

#[derive(Default, Serialize)]
struct Survey {
    models: Vec<Found>,
    calibrations: Vec<Found>,
    tasks: Vec<Found>,
    /// Folders of images and files of texts, which experts can be run on.
    samples: Vec<Found>,
    recipes: Vec<Found>,
    /// What looks like a model or a file of tensors and is none, in the library's words.
    errors: Vec<String>,
}

#[derive(Serialize)]
struct Found {
    path: PathBuf,
    name: String,
    bytes: u64,
    /// `model`, `adapter`, `delta`, or what the file is.
    kind: &'static str,
}

impl Survey {
    /// Whatever is no image.
    fn others(&self) -> usize {
        let texts = self.samples.iter().filter(|samples| samples.kind == "texts").count();
        self.models.len() + self.calibrations.len() + self.tasks.len() + self.errors.len() + texts
    }
}

impl Found {
    fn new(path: &Path, bytes: u64, kind: &'static str) -> Self {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.strip_suffix(".delta").unwrap_or(&name).to_owned();
        Found { path: path.to_path_buf(), name, bytes, kind }
    }
}

/// Everything below a folder that can be used, as JSON.
#[wasm_bindgen]
pub fn survey(folder: &str) -> Result<String> {
    let mut found = Survey::default();
    let root = Path::new(folder);
    look(root, &mut found).map_err(words)?;
    found.samples.retain(|samples| samples.path != root); // it is everything
    found.samples.sort_by(|a, b| a.path.cmp(&b.path));
    json(&found)
}

/// Gives the bytes of the images below the folder, those of models left out.
fn look(folder: &Path, found: &mut Survey) -> std::io::Result<u64> {
    let entries: Vec<_> = disk::read_dir(folder)?.collect::<std::io::Result<_>>()?;
    let names: Vec<String> = entries.iter().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    let weights = |name: &&String| name.ends_with(".safetensors") || name.ends_with(".gguf");
    let bytes: u64 = entries.iter().filter_map(|e| e.metadata().ok()).map(|meta| meta.len()).sum();
    if Adapter::is_one(folder) {
        found.models.push(Found::new(folder, bytes, "adapter"));
        return Ok(0);
    }
    if has("config.json") && names.iter().any(|n| weights(&n)) {
        match Checkpoint::open(folder) {
            Ok(_) => found.models.push(Found::new(folder, bytes, "model")),
            Err(error) => found.errors.push(error.to_string()),
        }
        return Ok(0);
    }
    let (mut images, mut own, others) = (0, false, found.others());
    for entry in entries {
        let (path, meta) = (entry.path(), entry.metadata()?);
        let name = entry.file_name().to_string_lossy().into_owned();
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        match ending.as_str() {
            _ if meta.is_dir() => images += look(&path, found)?,
            "yaml" | "yml" => found.recipes.push(Found::new(&path, meta.len(), "recipe")),
            "txt" | "jsonl" => found.samples.push(Found::new(&path, meta.len(), "texts")),
            _ if is_image(&path) => (images, own) = (images + meta.len(), true),
            _ if weights(&&name) => file(&path, meta.len(), found),
            _ => {}
        }
    }
    if own || images > 0 && found.others() == others {
        found.samples.push(Found::new(folder, images, "images"));
    }
    Ok(images)
}

/// A file of tensors that is part of no model's folder.
fn file(path: &Path, bytes: u64, found: &mut Survey) {
    if path.extension().is_some_and(|e| e == "gguf") {
        return found.models.push(Found::new(path, bytes, "model"));
    }
    match TensorFile::open(path) {
        Err(error) => found.errors.push(error.to_string()),
        Ok(file) if file.metadata().get("format").is_some_and(|f| f == calibration::FORMAT) => {
            found.calibrations.push(Found::new(path, bytes, "calibration"));
        }
        Ok(_) if Task::open(path).is_ok_and(|task| task.has_head()) => {
            found.tasks.push(Found::new(path, bytes, "task"));
        }
        Ok(_) if path.to_string_lossy().ends_with(".delta.safetensors") => {
            found.models.push(Found::new(path, bytes, "delta"));
        }
        Ok(_) => found.models.push(Found::new(path, bytes, "model")),
    }
}

/// Every method, as JSON.
#[wasm_bindgen]
pub fn all_methods() -> Result<String> {
    let method = |method: &esmerge::method::table::Description| {
        json!({
            "name": method.name, "line": method.line, "calibration": method.is_calibrated(),
            "least": method.models.0, "most": method.models.1.min(1000), "example": method.example,
            "strength": if matches!(method.strength, Strength::OnlyLambda) { "lambda" } else { "alpha" },
        })
    };
    json(&methods().map(method).collect::<Vec<_>>())
}

/// The pictures of a report, as SVG.
#[wasm_bindgen]
pub fn figures_of(report: &str) -> Result<Vec<String>> {
    let report = serde_json::from_str(report).map_err(words)?;
    Ok(esmerge::report::figures(&report).iter().map(esmerge::report::Chart::svg).collect())
}

/// The report's page.
#[wasm_bindgen]
pub fn page_of(report: &str) -> Result<String> {
    Ok(esmerge::report::page(&serde_json::from_str(report).map_err(words)?, None))
}
