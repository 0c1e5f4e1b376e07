use super::failure::Failure;
use super::{args, output};
use crate::checkpoint::{Checkpoint, settings};
use std::path::{Path, PathBuf};

/// `esmerge init`
pub(super) fn run(args: &args::Init) -> Result<(), Failure> {
    let mut models = Vec::new();
    for folder in &args.folders {
        models.extend(models_in(folder));
    }
    models.dedup();
    if models.is_empty() {
        let named: Vec<String> = args.folders.iter().map(|folder| folder.display().to_string()).collect();
        return Err(Failure::usage(&format!(
            "no model in {}: give folders with a model.safetensors (or shards and their index), or the folder that holds them",
            named.join(", ")
        )));
    }
    let base = base_of(&models);
    let kinds: Vec<Option<String>> = models.iter().map(|model| kind(model)).collect();
    if let Some(other) = (0..models.len()).find(|&i| kinds[i] != kinds[base]) {
        return Err(Failure::usage(&format!(
            "{} and {} are of different kinds ({} and {}), and cannot be merged",
            models[base].display(),
            models[other].display(),
            kinds[base].as_deref().unwrap_or("unknown"),
            kinds[other].as_deref().unwrap_or("unknown")
        )));
    }
    output::print(recipe(&models, base).trim_end());
    Ok(())
}

/// The folder itself, if it is a model, else those in it that are.
fn models_in(folder: &Path) -> Vec<PathBuf> {
    let is_model = |path: &PathBuf| Checkpoint::open(path).is_ok();
    let own = folder.to_path_buf();
    if is_model(&own) {
        return vec![own];
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_model).collect();
    found.sort();
    found
}

/// Which is the base: the one that others say they came from, else one that is called so, else the first.
fn base_of(models: &[PathBuf]) -> usize {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let origins: Vec<String> = models.iter().filter_map(|model| origin(model)).collect();
    let is_origin =
        |path: &PathBuf| origins.iter().any(|origin| origin.to_lowercase().ends_with(&name(path)));
    let is_called = |path: &PathBuf| ["base", "pretrained"].iter().any(|word| name(path).contains(word));
    models.iter().position(is_origin).or_else(|| models.iter().position(is_called)).unwrap_or(0)
}

fn config(model: &Path) -> Option<serde_json::Value> {
    settings::read(&model.join("config.json")).ok()
}

fn kind(model: &Path) -> Option<String> {
    Some(config(model)?.get("model_type")?.as_str()?.to_owned())
}

/// What a model's configuration says it was made from.
fn origin(model: &Path) -> Option<String> {
    let origin = config(model)?.get("_name_or_path")?.as_str()?.trim_end_matches('/').to_owned();
    (!origin.is_empty()).then_some(origin)
}

fn recipe(models: &[PathBuf], base: usize) -> String {
    let text = |path: &Path| {
        let text = path.display().to_string();
        let plain =
            text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) && !text.starts_with('-');
        if plain { text } else { format!("'{}'", text.replace('\'', "''")) }
    };
    let mut lines = vec![
        "# Paths are relative to this file. Another method: `esmerge methods` lists all,".to_owned(),
        "# `esmerge methods ties` explains one. With calibration (`esmerge capture`), `esm` keeps".to_owned(),
        "# most of what the experts can do.".to_owned(),
        "merge_method: ties".to_owned(),
        format!("base_model: {}   # what the others were fine-tuned from", text(&models[base])),
        "models:".to_owned(),
    ];
    for (_, model) in models.iter().enumerate().filter(|(i, _)| *i != base) {
        lines.push(format!("  - model: {}", text(model)));
        lines.push("    parameters:".to_owned());
        lines.push("      weight: 1.0          # its share".to_owned());
        lines.push("      density: 0.3         # the share of its differences that is kept".to_owned());
    }
    if models.len() == 1 {
        lines.push("  []                     # add the models to merge: - model: PATH".to_owned());
    }
    lines.extend([
        "parameters:".to_owned(),
        "  lambda: 1.0              # strength; {search: accuracy} finds it on labelled samples".to_owned(),
        "  # density: [0.5, 0.1]    # a list is a gradient from the first layer to the last".to_owned(),
        "out_dtype: auto            # float32, float16, bfloat16, or the base's own".to_owned(),
    ]);
    lines.join("\n")
}
