//! What a merge leaves beside the weights.

use super::{Error, Job, Output};
use crate::checkpoint::{
    self, DeltaEntry, DeltaFile, DeltaMeta, DeltaWriter, Left, OutputDir, Temporary, parent,
};
use crate::files;
use crate::host::PathExt;
use crate::host::fs;
use crate::plan::{Layer, Role, Settings, Tokens};
use crate::recipe::Recipe;
use crate::report::{self, Report};
use serde_json::Value;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Put before a recipe that has left the folder its paths start from.
const NOTE: &str = "# Relative paths in this recipe start from the folder that it was in; esmerge-report.json names all inputs in \
    full.\n";

/// Recipe, report and model card.
pub(super) fn write_reports(folder: &Path, recipe: &str, report: &Report) -> Result<(), Error> {
    let recipe = recipe.trim_start_matches('\u{feff}');
    let note = if recipe.starts_with(NOTE) { "" } else { NOTE };
    write(folder, "recipe.yaml", format!("{note}{recipe}").as_bytes())?;
    write_json(folder, report::FILE, report)?;
    let numbers = serde_json::to_value(report).unwrap_or_default();
    if let Some(chart) = report::scales(&numbers) {
        write(folder, report::SCALES, chart.svg().as_bytes())?;
    }
    write(folder, "README.md", report::model_card(report, recipe).as_bytes())
}

/// Tells a model of slices how many layers it has, and of what kind each is.
pub(super) fn renumber(recipe: &Recipe, folder: &Path, base: &Settings) -> Result<(), Error> {
    const COUNTS: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];
    let layers = recipe.slices.last().map_or(0, |slice| slice.layers.end);
    let known = COUNTS.iter().find_map(|key| base.config.get(*key)?.as_u64());
    change_config(folder, |key, value| {
        if COUNTS.contains(&key) {
            *value = layers.into();
        } else if let Some(list) = value.as_array_mut().filter(|list| known == Some(list.len() as u64)) {
            // one entry a layer, such as `layer_types`
            let from = recipe.slices.iter().flat_map(|slice| slice.base.1..slice.base.1 + slice.layers.len());
            let picked: Option<Vec<Value>> = from.map(|layer| list.get(layer).cloned()).collect();
            *list = picked.unwrap_or_else(|| list.clone());
        }
    })
}

/// Changes values of the output's `config.json`, if it has one.
fn change_config(folder: &Path, mut change: impl FnMut(&str, &mut Value)) -> Result<(), Error> {
    let path = folder.join("config.json");
    if !path.is_there() {
        return Ok(());
    }
    let read = checkpoint::settings::read::<Value>(&path);
    let mut config = read.map_err(checkpoint::Error::io("read", &path))?;
    let Some(object) = config.as_object_mut() else { return Ok(()) };
    object.iter_mut().for_each(|(key, value)| change(key, value));
    fs::remove_file(&path).map_err(checkpoint::Error::io("replace", &path))?;
    write_json(folder, "config.json", &config)
}

/// What a tokenizer is loaded from, beside its `tokenizer.json`.
const OLDER_VOCABULARIES: [&str; 8] = [
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "tokenizer.json",
];
/// What else is said of it.
const OF_TOKENIZERS: [&str; 4] =
    ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"];

/// Gives the output its tokenizer, and tells the configuration how many rows there are.
pub(super) fn write_tokens(folder: &Path, tokens: &Tokens) -> Result<(), Error> {
    change_config(folder, |key, value| match value.as_object_mut() {
        Some(nested) if key == "text_config" => {
            nested.get_mut("vocab_size").into_iter().for_each(|size| *size = tokens.rows.into());
        }
        _ if key == "vocab_size" => *value = tokens.rows.into(),
        _ => {}
    })?;
    if let Some(from) = &tokens.folder {
        for name in OLDER_VOCABULARIES.iter().chain(&OF_TOKENIZERS) {
            remove(folder, name)?;
            if from.join(name).leads_to_file() {
                let read = files::read(&from.join(name), files::TOKENIZER);
                write(folder, name, &read.map_err(checkpoint::Error::io("read", &from.join(name)))?)?;
            }
        }
    }
    if let Some(json) = &tokens.json {
        // the others lack what was added
        OLDER_VOCABULARIES.iter().try_for_each(|name| remove(folder, name))?;
        write(folder, "tokenizer.json", json.as_bytes())?;
    }
    Ok(())
}

fn remove(folder: &Path, name: &str) -> Result<(), Error> {
    match fs::remove_file(folder.join(name)) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(checkpoint::Error::io("replace", &folder.join(name))(e).into())
        }
        _ => Ok(()),
    }
}

/// Puts a chat template in place of the base's, wherever that stands.
pub(super) fn write_chat_template(folder: &Path, template: &str) -> Result<(), Error> {
    let path = folder.join("tokenizer_config.json");
    if path.is_there() {
        let read = checkpoint::settings::read::<serde_json::Value>(&path);
        let mut config = read.map_err(checkpoint::Error::io("read", &path))?;
        if config.as_object_mut().is_some_and(|keys| keys.shift_remove("chat_template").is_some()) {
            fs::remove_file(&path).map_err(checkpoint::Error::io("replace", &path))?;
            write_json(folder, "tokenizer_config.json", &config)?;
        }
    }
    write(folder, "chat_template.jinja", template.as_bytes())
}

/// Writes a small JSON file into the output.
pub(super) fn write_json(folder: &Path, name: &str, value: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(value);
    let mut text = text.map_err(|e| checkpoint::Error::io("write", &folder.join(name))(e.into()))?;
    text.push(b'\n');
    write(folder, name, &text)
}

fn write(folder: &Path, name: &str, text: &[u8]) -> Result<(), Error> {
    let path = folder.join(name);
    Ok(fs::write(&path, text).map_err(checkpoint::Error::io("write", &path))?)
}

/// Gives the finished files their names: the model first, for a model without its deltas is of more use than the reverse.
pub(super) fn finish(output: Output, spill: Option<DeltaWriter>, keep: Option<Keep>) -> Result<(), Error> {
    // a file that is not kept lies in the output folder, which must not get it
    let Some((keep, spill)) = keep.zip(spill) else {
        return Ok(output.finish()?);
    };
    let model = output.folder().wanted().to_path_buf();
    output.finish()?;
    keep.publish(spill, &model)
}

/// An error with the paths that the user knows, in place of temporary ones.
pub(super) fn name_wanted(error: Error, output: &OutputDir, keep: Option<&Keep>) -> Error {
    match error {
        Error::Checkpoint(error) => {
            let error = output.name_wanted(error);
            match keep {
                Some(keep) => keep.name_wanted(error).into(),
                None => error.into(),
            }
        }
        other => other,
    }
}

/// What a delta file says of the merge.
pub(super) fn delta_meta<B>(job: &Job<'_, B>, betas: &[f64], base_fingerprint: String) -> DeltaMeta {
    let unmerged = |layer: &Layer| matches!(layer.role, Role::Base | Role::Pretrained);
    let merged = job.plan.layers.iter().zip(betas).filter(|(layer, _)| !unmerged(layer));
    let entries = merged.flat_map(|(layer, &beta)| {
        let entry = DeltaEntry { beta, role: job.plan.treatment(layer).to_owned(), alpha: layer.scaled };
        layer.parts.iter().map(move |part| (part.name.clone(), entry.clone()))
    });
    DeltaMeta {
        base_fingerprint,
        method: job.recipe.method.name().to_owned(),
        models: job.recipe.models.iter().map(|m| m.name.clone()).collect(),
        alpha: job.plan.alpha,
        out_dtype: job.recipe.out_dtype,
        recipe: job.recipe.text.clone(),
        tensors: entries.collect(),
    }
}

/// The place of deltas that are kept: a file outside the output folder, which is renamed as a whole.
pub(super) struct Keep {
    file: PathBuf,
    /// Where the file is written: beside its place, since only a rename within one folder is atomic.
    temporary: Temporary,
    replace: bool,
}

impl Keep {
    /// Checks the path, and keeps other runs from writing there. With `force`, an earlier delta file may make way.
    pub fn create(file: &Path, output: &OutputDir, force: bool) -> Result<Keep, Error> {
        check_keep_delta(file, output.wanted(), force)?;
        let temporary = Temporary::beside(file)?;
        Ok(Keep { file: file.to_path_buf(), temporary, replace: force })
    }

    /// Removes what was written.
    pub fn clear(&self) -> Result<(), checkpoint::Error> {
        DeltaWriter::remove(self.folder())
    }

    /// Where to write meanwhile.
    pub fn folder(&self) -> &Path {
        self.temporary.path()
    }

    /// What a killed run had left of this file.
    pub fn left(&self) -> Option<&Left> {
        self.temporary.left()
    }

    /// An error with the path that the user knows.
    pub fn name_wanted(&self, error: checkpoint::Error) -> checkpoint::Error {
        match error {
            checkpoint::Error::Io { action, path, source } if path.starts_with(self.folder()) => {
                checkpoint::Error::Io { action, path: self.file.clone(), source }
            }
            other => other,
        }
    }

    fn publish(self, spill: DeltaWriter, model: &Path) -> Result<(), Error> {
        let Keep { file, temporary, replace } = self;
        let published = temporary.publish(|_| spill.publish(&file, replace));
        published.map_err(|e| Error::KeepDelta {
            reason: format!("{e}; the model itself is complete in {}", model.display()),
            path: file,
        })
    }
}

/// Whether deltas can be kept in a file, told before any work.
pub fn check_keep_delta(file: &Path, output: &Path, force: bool) -> Result<(), Error> {
    let refuse = |reason: &str| Error::KeepDelta { path: file.to_path_buf(), reason: reason.to_owned() };
    if file.file_name().is_none() {
        return Err(refuse("the path ends in no file name"));
    }
    if lies_in(file, output) {
        return Err(refuse("it lies in the output folder; keep it beside that"));
    }
    if fs::symlink_metadata(file).is_ok() {
        if !force {
            return Err(refuse("it exists already; name a new file, or replace earlier deltas with --force"));
        }
        DeltaFile::open(file).map_err(|e| refuse(&format!("--force replaces delta files only, but {e}")))?;
    }
    if !parent(file).leads_to_folder() {
        return Err(refuse("its folder does not exist; create that first"));
    }
    Ok(())
}

/// Whether a file lies in a folder, however the two are spelled, and whether or not they exist yet.
fn lies_in(file: &Path, folder: &Path) -> bool {
    resolved(file).starts_with(resolved(folder))
}

/// The path without links and detours, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let mut known = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut rest = Vec::new();
    loop {
        if let Ok(real) = fs::canonicalize(&known) {
            return rest.iter().rev().fold(real, |path, part: &OsString| match part.to_str() {
                Some("..") => path.parent().map_or(path.clone(), Path::to_path_buf),
                _ => path.join(part),
            });
        }
        match known.components().next_back().map(|part| part.as_os_str().to_owned()) {
            Some(part) if known.pop() => rest.push(part),
            _ => return path.to_path_buf(),
        }
    }
}
