//! Another alpha from the deltas that a merge kept.

use super::assemble::{Deltas, Files, Source, Step, write_model};
use super::flow::{Flow, Limits};
use super::outputs::{name_wanted, write_reports};
use super::reader::{Reader, Request};
use super::weights::{BaseValues, base_request};
use super::{Error, Progress};
use crate::backend::{Backend, Shape};
use crate::checkpoint::journal::Ledger;
use crate::checkpoint::{self, Checkpoint, DeltaFile, OutputDir, RouterFile, Sidecars, fingerprint};
use crate::data::HEADS;
use crate::heads;
use crate::host::Instant;
use crate::host::PathExt;
use crate::plan::{self, Role, SUM_CHUNK};
use crate::report::{Group, Input, Report, library};
use indexmap::IndexMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What to make, from what.
#[derive(Clone, Debug)]
pub struct Rescale {
    /// The file that `merge --keep-delta` wrote.
    pub delta: PathBuf,
    /// The base of that merge.
    pub base: PathBuf,
    /// The new coefficient.
    pub alpha: f64,
    /// Bytes of one output file.
    pub shard_size: u64,
    /// Bytes of memory for what is read ahead and what waits to be written.
    pub max_memory: u64,
}

/// Makes the model `W0 + alpha beta dW` from kept deltas. The base must be the one of the merge, byte for byte.
pub async fn rescale<B: Backend>(
    backend: &B,
    request: &Rescale,
    output: OutputDir,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let started = Instant::now();
    output.left().iter().for_each(|left| progress.warn(&left.to_string()));
    let written = write(backend, request, &output, progress).await;
    let mut report = written.map_err(|e| name_wanted(e, &output, None))?;
    output.finish()?;
    report.seconds = Some(started.elapsed().as_secs_f64());
    Ok(report)
}

/// Everything, under temporary names.
async fn write<B: Backend>(
    backend: &B,
    request: &Rescale,
    output: &OutputDir,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    refuse_experts(&request.delta)?;
    let deltas = DeltaFile::open(&request.delta)?;
    if deltas.meta().method == ESM_PLUS {
        return Err(Error::DependsOnAlpha { path: request.delta.clone() });
    }
    let base = Checkpoint::open(&request.base)?;
    check_config(&base)?;
    let sidecars = base.folder().map(Sidecars::find).transpose()?.unwrap_or_default();
    let modules = sidecars.modules().into_iter();
    let kept = modules.map(|name| format!("the module {name} is the base's: delta files hold no modules"));
    let notes: Vec<String> = sidecars.warnings().iter().cloned().chain(kept).collect();
    notes.iter().for_each(|note| progress.warn(note));
    check_base(&deltas, &base, request)?;
    let steps = steps(&deltas, &base, request.alpha);
    progress.start(steps.keys().filter_map(|name| base.get(name)).map(|m| m.bytes).sum());
    let kept = Kept { backend, base: &base, file: &deltas };
    let source = Source { backend, base: &base, steps: &steps, deltas: &kept };
    let ledger = Ledger::forgetful(output.folder());
    let files = Files {
        ledger: &ledger,
        root: output.path(),
        share: None,
        shard_size: request.shard_size,
        always_index: false,
    };
    let mut flow = Flow::new(Limits::new(request.max_memory, backend.batch_bytes(), 0), 0);
    write_model(&source, output.path(), &files, &mut flow, progress).await?;

    let mut report = report(backend, &deltas, &base, request.alpha)?;
    report.warnings = notes;
    if let Some(note) = carry_heads(&request.delta, output.path(), deltas.meta().alpha)? {
        progress.warn(&note);
        report.warnings.push(note);
    }
    sidecars.modules().iter().try_for_each(|name| sidecars.copy_weights(name, output.path()))?;
    sidecars.copy(output.path(), deltas.meta().out_dtype)?;
    write_reports(output.path(), &deltas.meta().recipe, &report)?;
    Ok(report)
}

/// The heads that lie beside the deltas go along; those that were refitted were so at the alpha of the merge, which is said.
fn carry_heads(delta: &Path, output: &Path, alpha: f64) -> Result<Option<String>, Error> {
    let folder = delta.parent().map(|folder| folder.join(HEADS)).filter(|folder| folder.leads_to_folder());
    let Some(folder) = folder else { return Ok(None) };
    let refitted = heads::carry(&folder, &output.join(HEADS))?;
    Ok((!refitted.is_empty()).then(|| {
        format!(
            "heads refitted at alpha {alpha} were copied ({}): refit them to this model by `esmerge heads`",
            refitted.join(", ")
        )
    }))
}

/// A configuration that merges refuse would only be found out by whoever loads the output.
fn check_config(base: &Checkpoint) -> Result<(), Error> {
    let Some(path) = base.folder().map(|f| f.join("config.json")).filter(|p| p.leads_to_file()) else {
        return Ok(());
    };
    let read = checkpoint::settings::read::<serde_json::Value>(&path);
    read.map(drop).map_err(|e| plan::Error::BadConfig { path, reason: e.to_string() }.into())
}

/// The method whose outputs cannot be rescaled.
const ESM_PLUS: &str = "esm++";

/// The experts of ESM++ are what a model of one alpha lacks.
fn refuse_experts(path: &Path) -> Result<(), Error> {
    let folder = if path.leads_to_folder() { Some(path) } else { path.parent() };
    match folder {
        Some(folder) if RouterFile::is_in(folder) => Err(Error::DependsOnAlpha { path: path.to_path_buf() }),
        _ => Ok(()),
    }
}

fn check_base(deltas: &DeltaFile, base: &Checkpoint, request: &Rescale) -> Result<(), Error> {
    let bad = |reason| checkpoint::Error::BadDelta { path: request.delta.clone(), reason };
    let fits = |(name, meta): (&String, &checkpoint::TensorMeta)| {
        base.get(name).is_some_and(|b| b.shape == meta.shape && b.float().is_some())
    };
    let strange = deltas.file().tensors().iter().find(|entry| !fits(*entry));
    let same = strange.is_none() && fingerprint(base, base.names())? == deltas.meta().base_fingerprint;
    if same {
        return Ok(());
    }
    let what = match strange {
        Some((name, _)) => format!("its tensor `{name}` is not one of {}", base.path().display()),
        None => format!("the weights of {} are not those it was made for", base.path().display()),
    };
    Err(bad(format!("{what}; give the base model of the merge that kept it")).into())
}

fn steps(deltas: &DeltaFile, base: &Checkpoint, alpha: f64) -> IndexMap<String, Step> {
    let step = |name: &str| {
        let stored = base.get(name).and_then(|_| base.written_as(name));
        let step = match (deltas.meta().tensors.get(name), stored) {
            (Some(entry), Some(stored)) => Step::Merge {
                alpha: if entry.alpha { alpha } else { 1.0 },
                beta: entry.beta,
                dtype: deltas.meta().out_dtype.unwrap_or(stored),
            },
            _ => Step::Copy,
        };
        Some((name.to_owned(), step))
    };
    base.names().filter_map(step).collect()
}

/// Deltas in a file.
struct Kept<'a, B> {
    backend: &'a B,
    base: &'a Checkpoint,
    file: &'a DeltaFile,
}

impl<B: Backend> Deltas<B> for Kept<'_, B> {
    fn chunk(&self, _: &str) -> usize {
        SUM_CHUNK
    }

    fn requests(&self, tensor: &str, range: Range<usize>) -> Vec<Request> {
        let deltas = self.file.file().values(tensor, range.clone()).ok().map(Request::other);
        base_request(self.base, tensor, range).into_iter().chain(deltas).collect()
    }

    async fn read(
        &self,
        reader: &mut Reader<'_>,
        tensor: &str,
        range: Range<usize>,
        _: &BaseValues<B::Tensor>,
    ) -> Result<B::Tensor, Error> {
        let stored = reader.other(self.file.file().values(tensor, range.clone())?)?;
        let shape = Shape::matrix(1, range.len());
        self.backend.unpack(shape, stored.dtype(), &stored).map_err(Error::device(tensor))
    }
}

fn report<B: Backend>(
    backend: &B,
    deltas: &DeltaFile,
    base: &Checkpoint,
    alpha: f64,
) -> Result<Report, Error> {
    let meta = deltas.meta();
    let mut groups: IndexMap<(String, Option<String>), Group> = IndexMap::new();
    for (tensor, entry) in &meta.tensors {
        let decomposed = [Role::Esm, Role::TsvM].iter().any(|role| role.name() == entry.role);
        let name = decomposed.then(|| plan::kind_of_layer(tensor));
        let group = groups.entry((entry.role.clone(), name.clone())).or_insert_with(|| Group {
            name,
            role: entry.role.clone(),
            scaled_by_alpha: entry.alpha,
            ..Group::default()
        });
        group.layers += 1;
        group.tensors += 1;
        if decomposed {
            group.beta.extend([entry.beta]);
        }
    }
    let input = Input::of(base, "base", None)?;
    Ok(Report {
        merge_method: meta.method.clone(),
        models: meta.models.clone(),
        base_model: input.name.clone(),
        library_name: base.folder().and_then(library),
        inputs: vec![input],
        device: backend.name(),
        alpha,
        out_dtype: meta.out_dtype.map(|d| d.to_string()),
        overrides: vec![format!("rescaled from alpha {} to {alpha}", meta.alpha)],
        groups: groups.into_values().collect(),
        ..Report::default()
    })
}
