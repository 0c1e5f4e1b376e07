//! What a merge leaves beside the weights.

use super::{Error, Job, Options};
use crate::checkpoint::{self, DeltaEntry, DeltaMeta, DeltaWriter, OutputDir, fingerprint};
use crate::plan::{Layer, Role};
use crate::report::{self, Report};
use std::path::Path;

/// Recipe, report and model card.
pub(super) fn write_reports(output: &OutputDir, recipe: &str, report: &Report) -> Result<(), Error> {
    write_text(output, "recipe.yaml", recipe)?;
    write_json(output, report::FILE, report)?;
    write_text(output, "README.md", &report::model_card(report, recipe))
}

/// Writes a small JSON file into the output.
pub(super) fn write_json(output: &OutputDir, name: &str, value: &impl serde::Serialize) -> Result<(), Error> {
    let path = output.path().join(name);
    let io = |source| checkpoint::Error::Io { action: "write", path: path.clone(), source };
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| io(e.into()))?;
    text.push(b'\n');
    Ok(std::fs::write(&path, text).map_err(io)?)
}

fn write_text(output: &OutputDir, name: &str, text: &str) -> Result<(), Error> {
    let path = output.path().join(name);
    let io = |source| checkpoint::Error::Io { action: "write", path: path.clone(), source };
    Ok(std::fs::write(&path, text).map_err(io)?)
}

/// Gives the finished files their names: both or none.
pub(super) fn finish<B>(
    output: OutputDir,
    spill: DeltaWriter,
    options: &Options,
    job: &Job<'_, B>,
    betas: &[f64],
) -> Result<(), Error> {
    let Some(file) = &options.keep_delta else {
        drop(spill); // it lies in the output folder, which must not get it
        return Ok(output.finish()?);
    };
    let fingerprint = fingerprint(&job.family.base, job.family.base.names())?;
    spill.finish(file, &delta_meta(job, betas, fingerprint))?;
    output.finish().map_err(|e| {
        let _ = std::fs::remove_file(file);
        e.into()
    })
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

/// Deltas are kept in a new file, outside the output folder, which is renamed as a whole.
pub(super) fn check_keep_delta(file: &Path, output: &Path) -> Result<(), Error> {
    let refuse = |reason: &str| Error::KeepDelta { path: file.to_path_buf(), reason: reason.to_owned() };
    if file.symlink_metadata().is_ok() {
        return Err(refuse("it exists already; name a new file"));
    }
    if file.starts_with(output) {
        return Err(refuse("it lies in the output folder; keep it beside that"));
    }
    if !parent(file).is_dir() {
        return Err(refuse("its folder does not exist; create that first"));
    }
    Ok(())
}

/// The folder a file lies in.
pub(super) fn parent(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
