//! The order of a merge.

use super::assemble::{Files, Source, Step, write_model};
use super::decompose::Outcome;
use super::experts::write_experts;
use super::faults::{Faults, try_again};
use super::flow::{Flow, Limits};
use super::modules::Module;
use super::outputs::{self, Keep, delta_meta, finish, name_wanted, write_reports};
use super::reader::Reader;
use super::rounding::{self, WARN_ABOVE};
use super::spill::{self, Spilled, is_spilled, largest_read, layer_bytes, spill};
use super::sums::Merged;
use super::variances::negative_variances;
use super::{
    Error, Job, Output, Progress, adapters, heads, journal, modules, search, shares, slabs, summary,
};
use crate::backend::cpu::Cpu;
use crate::backend::layers::Layers;
use crate::checkpoint::journal::{Journal, Ledger};
use crate::checkpoint::{Checkpoint, DeltaWriter, OutputDir, Sidecars, TensorMeta, fingerprint};
use crate::host::Instant;
use crate::method::assembly;
use crate::method::table::Calibration;
use crate::method::ties::OfModel;
use crate::plan::{Family, Plan, Role};
use crate::recipe::Recipe;
use crate::report::{AlphaSearch, Report};
use indexmap::IndexMap;
use serde::Serialize;
use std::path::PathBuf;
use std::rc::Rc;

/// What a merge is asked for beside the recipe.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of one output file.
    pub shard_size: u64,
    /// Bytes of memory for merged deltas, for what is read ahead and for what waits to be written, beside what the work on a layer
    /// takes. Deltas that do not fit go through a file.
    pub max_memory: u64,
    /// Where to keep the merged deltas.
    pub keep_delta: Option<PathBuf>,
    /// Whether kept deltas may replace earlier ones.
    pub force: bool,
    /// What flags changed in the recipe, for the report: `--alpha 0.7`.
    pub overrides: Vec<String>,
    /// Whether all of every input is hashed, to tell whether it is what an earlier run has read.
    pub verify: bool,
    /// Whether to put together what others have done, and to refuse if that is not all.
    pub join: bool,
    /// Whether the CPU goes on where the device cannot.
    pub fallback: bool,
    /// What the report says beside what the merge finds, such as why a device was not taken.
    pub warnings: Vec<String>,
}

impl Default for Options {
    /// Files of 5 GB, and a GiB of memory beside what the work takes.
    fn default() -> Options {
        Options {
            shard_size: 5_000_000_000,
            max_memory: 1 << 30,
            keep_delta: None,
            force: false,
            overrides: Vec::new(),
            verify: false,
            join: false,
            fallback: false,
            warnings: Vec::new(),
        }
    }
}

/// What is said of `--keep-delta` with ESM++.
const KEPT_WITHOUT_USE: &str = "the kept deltas are for inspection only: the experts of esm++ depend on alpha, so that \
    `esmerge rescale` refuses them";

/// Merges a family into a folder that appears under its name when it is complete.
pub async fn merge<B: Layers>(
    backend: &B,
    recipe: &Recipe,
    family: &Family,
    plan: &Plan,
    output: impl Into<Output>,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let (started, output) = (Instant::now(), output.into());
    check_kept(options, recipe, family)?;
    let folder = output.folder();
    let keep =
        options.keep_delta.as_ref().map(|file| Keep::create(file, folder, options.force)).transpose()?;
    for left in output.left().into_iter().chain(keep.as_ref().and_then(Keep::left)) {
        progress.warn(&left.to_string());
    }
    let faults = Faults::default();
    let class = output.class(backend, options);
    let asked = Asked { output: &output, keep: keep.as_ref(), options, class: &class };
    let job = Job { backend, recipe, family, plan, of_model: None, faults: &faults };
    let mut written = once_more(&job, &asked, progress).await;
    if let Err(error) = &written
        && let Some(message) = falls_back(error, options)
    {
        faults.note(message, progress);
        asked.start_over()?;
        written = write(
            Job { backend: &Cpu, recipe, family, plan, of_model: None, faults: &faults },
            &asked,
            progress,
        )
        .await;
    }
    let (mut report, deltas, flow) = written.map_err(|e| name_wanted(e, folder, keep.as_ref()))?;
    finish(output, deltas, keep)?;
    report.seconds = Some(started.elapsed().as_secs_f64());
    report.stages = Some(flow.stages(started.elapsed()));
    Ok(report)
}

/// What is the same in every try at a merge.
struct Asked<'a> {
    output: &'a Output,
    keep: Option<&'a Keep>,
    options: &'a Options,
    /// The kind of device that the results depend on.
    class: &'a str,
}

impl Asked<'_> {
    fn start_over(&self) -> Result<(), Error> {
        self.keep.map_or(Ok(()), Keep::clear)?;
        Ok(self.output.start_over()?)
    }
}

/// What a merge leaves when it is done.
type Written = (Report, Option<DeltaWriter>, Flow);

/// Writes everything; where the device fails and no step can deal with that itself, once more, from the journal if there is one.
async fn once_more<B: Layers>(
    job: &Job<'_, B>,
    asked: &Asked<'_>,
    progress: &mut dyn Progress,
) -> Result<Written, Error> {
    loop {
        match write(Job { ..*job }, asked, progress).await {
            Err(error) => try_again(job, error, progress).await?,
            written => return written,
        }
        asked.start_over()?;
    }
}

/// What is said where the CPU takes over; none if it does not.
fn falls_back(error: &Error, options: &Options) -> Option<String> {
    let fault = error.of_device().filter(|cause| options.fallback && cause.is_fault_of_device());
    fault.map(|_| format!("{error}; the CPU goes on (--fallback cpu)"))
}

/// Whether deltas can be kept of such a merge.
fn check_kept(options: &Options, recipe: &Recipe, family: &Family) -> Result<(), Error> {
    let Some(path) = &options.keep_delta else { return Ok(()) };
    let reason = if recipe.adapter.is_some() {
        "an adapter is merged without deltas (`out: lora`); leave --keep-delta out"
    } else if !recipe.slices.is_empty() {
        "a model of slices differs from its base by more than deltas"
    } else if family.tokens.is_some() {
        "a model of another vocabulary than its base differs from it by more than deltas; leave `tokenizer_source` out"
    } else {
        return Ok(());
    };
    Err(Error::KeepDelta { path: path.clone(), reason: reason.to_owned() })
}

/// What both halves of a merge need.
struct Begun {
    ledger: Ledger,
    units: Vec<Vec<usize>>,
    flow: Flow,
    of_model: Option<Rc<OfModel>>,
}

/// Finds out what is done already, and what a method learns of all tensors before the first.
async fn begin<B: Layers>(
    job: &Job<'_, B>,
    &Asked { output, options, class, .. }: &Asked<'_>,
    keep: bool,
    progress: &mut dyn Progress,
) -> Result<Begun, Error> {
    check_fingerprints(job.family)?;
    let (ledger, units) = output.ledger(job, spill::units(job, keep), (options, class))?;
    if let Some(reused) = journal::reused(&ledger, units.len()) {
        progress.note(&reused);
    }
    progress.start(work(job, job.plan.puts_all_aside(keep)));
    let limits = Limits::new(options.max_memory, job.backend.batch_bytes(), largest_read(job));
    let mut flow = Flow::new(limits, job.family.experts.len());
    let mut reader = Reader::ahead(&flow, std::iter::empty());
    let of_model = slabs::of_model(job, &ledger, &mut reader).await?;
    reader.rounding.clone_from(&flow.rounding);
    reader.finish(&mut flow);
    Ok(Begun { ledger, units, flow, of_model })
}

/// Everything, under temporary names.
async fn write<B: Layers>(
    job: Job<'_, B>,
    asked: &Asked<'_>,
    progress: &mut dyn Progress,
) -> Result<Written, Error> {
    let Job { backend, recipe, family, plan, .. } = job;
    let &Asked { output, keep, options, .. } = asked;
    let folder = output.folder();
    if let Some(out) = recipe.adapter {
        check_fingerprints(family)?;
        let (report, flow) = adapters::write(job, out, folder, options, progress).await?;
        return Ok((report, None, flow));
    }
    let experts_heads = heads::find(recipe)?;
    if keep.is_some() && plan.experts.is_some() {
        progress.warn(KEPT_WITHOUT_USE);
    }
    let (sidecars, modules) = beside(family)?;
    let notes = notes(&sidecars, &modules);
    notes.iter().for_each(|note| progress.warn(note));
    let Begun { ledger, units, mut flow, of_model } = begin(&job, asked, keep.is_some(), progress).await?;
    if options.join {
        journal::check_all_done(&job, &ledger, &units, folder)?;
    }
    journal::clean(&ledger, folder.path())?;
    let job = Job { of_model: of_model.as_ref(), ..job };
    let spilled = spill(&job, &ledger, (&units, 0..units.len()), keep, &mut flow, progress).await?;
    let betas = betas(&job, &spilled.outcomes);
    let (searched, alpha_search) = searched(&job, &spilled, &betas, &ledger, progress).await?;
    let job = Job { plan: &searched, ..job };
    let files = files(&ledger, folder, options, plan);
    write_files(&job, (&spilled, &betas), &files, &mut flow, progress).await?;
    for module in &modules {
        module.write(&job, &sidecars, &files, &mut flow, progress).await?;
    }

    let mut report = summary::report(&job, &spilled.outcomes, &betas, options)?;
    report.warnings.extend(notes);
    report.modules = modules.iter().filter(|m| m.is_merged()).map(|m| m.name.clone()).collect();
    report.alpha_search = alpha_search;
    if let Some(experts) = &plan.experts {
        let energy = write_experts(&job, experts, (folder, &ledger), &mut flow, progress).await?;
        report.experts = Some(summary::experts(&job, experts, &energy));
    }
    let damages =
        family.experts.iter().zip(&flow.rounding).filter_map(|(e, r)| Some((e.name.as_str(), r.damage()?)));
    let damages: Vec<(&str, f64)> = damages.collect();
    report.rounding = damages.iter().map(|&(name, damage)| (name.to_owned(), damage)).collect();
    let mut warnings: Vec<String> = summary::vanished(&job, &spilled.outcomes).into_iter().collect();
    // a sum only averages the noise; a decomposition takes it for directions
    if plan.layers.iter().any(|layer| matches!(layer.role, Role::Esm | Role::TsvM | Role::Spectral)) {
        let coarse: Vec<_> = damages.into_iter().filter(|(_, damage)| *damage > WARN_ABOVE).collect();
        warnings.extend(rounding::warning(&coarse));
    }
    warnings.extend(negative_variances(&Checkpoint::open(folder.path())?)?);
    for warning in warnings {
        progress.warn(&warning);
        report.warnings.push(warning);
    }
    sidecars.copy(folder.path(), recipe.out_dtype)?;
    if let Some(tokens) = &family.tokens {
        outputs::write_tokens(folder.path(), tokens)?;
    }
    if let Some(template) = &recipe.chat_template {
        outputs::write_chat_template(folder.path(), template)?;
    }
    if !recipe.slices.is_empty() {
        outputs::renumber(recipe, folder.path(), &family.settings)?;
    }
    if let Some(heads) = experts_heads {
        report.heads = heads::write(&job, heads, folder.path()).await?;
    }
    report.products = backend.tuning();
    report.pace = backend.pace();
    report.warnings.extend(options.warnings.iter().cloned().chain(job.faults.list()));
    write_reports(folder.path(), &recipe.text, &report)?;
    if let Some(file) = spilled.deltas.file() {
        let fingerprint = fingerprint(&family.base, family.base.names())?;
        file.seal(&delta_meta(&job, &betas, fingerprint))?;
    }
    summary::add_times(&mut report, &job, &spilled.seconds);
    Ok((report, spilled.deltas.into_file(), flow))
}

/// The plan with the alpha that a search finds, if there is one.
async fn searched<B: Layers>(
    job: &Job<'_, B>,
    spilled: &Spilled,
    betas: &[f64],
    ledger: &Ledger,
    progress: &mut dyn Progress,
) -> Result<(Plan, Option<AlphaSearch>), Error> {
    Ok(match search::alpha(job, &spilled.deltas, betas, ledger, progress).await? {
        None => (job.plan.clone(), None),
        Some((alpha, search)) => (job.plan.with_alpha(alpha), Some(search)),
    })
}

/// The files of the merged model; how many.
async fn write_files<B: Layers>(
    job: &Job<'_, B>,
    (spilled, betas): (&Spilled, &[f64]),
    files: &Files<'_>,
    flow: &mut Flow,
    progress: &mut dyn Progress,
) -> Result<usize, Error> {
    let (steps, deltas) = (steps(job, betas), Merged::new(job, Some(&spilled.deltas)));
    let source = Source { backend: job.backend, base: &job.family.base, steps: &steps, deltas: &deltas };
    write_model(&source, files.root, files, flow, progress).await
}

fn files<'a>(ledger: &'a Ledger, folder: &'a OutputDir, options: &Options, plan: &Plan) -> Files<'a> {
    let (root, shard_size) = (folder.path(), options.shard_size);
    Files { ledger, root, share: None, shard_size, always_index: plan.experts.is_some() }
}

/// A share of a merge, for one of several runs that work on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which, from 1 on.
    pub index: usize,
    /// Of how many.
    pub count: usize,
    /// Whether it is of the output's files, once all layers are merged, or of the layers.
    pub of_files: bool,
}

/// What a share has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ShareDone {
    /// Batches of layers of this share.
    pub batches: usize,
    /// Batches of all.
    pub of_batches: usize,
    /// Files of the output of this share.
    pub files: usize,
}

/// Whether a merge can be shared out.
pub fn check_share(recipe: &Recipe) -> Result<(), Error> {
    let refused = |reason| Err(Error::Share { reason });
    if recipe.adapter.is_some() {
        return refused("an adapter (`out: lora`) is merged by one run; leave --shard out");
    }
    if recipe.method.description().calibration == Calibration::OfMerged {
        return refused(
            "this method merges every block by what those before it have become, in one run; leave --shard out",
        );
    }
    Ok(())
}

/// Does a share of a merge, which stays in the journal until [`merge`] with [`Options::join`] puts all together. Where nothing has
/// to be known of all layers before the first is written, the share is of the output's files too.
pub async fn merge_share<B: Layers>(
    backend: &B,
    (recipe, family, plan): (&Recipe, &Family, &Plan),
    journal: Journal,
    share: Share,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<ShareDone, Error> {
    let output = Output::from(journal);
    let faults = Faults::default();
    let class = output.class(backend, options);
    let asked = Asked { output: &output, keep: None, options, class: &class };
    let job = Job { backend, recipe, family, plan, of_model: None, faults: &faults };
    let mut done = share_once_more(&job, &asked, share, progress).await;
    if let Err(error) = &done
        && let Some(message) = falls_back(error, options)
    {
        faults.note(message, progress);
        let job = Job { backend: &Cpu, recipe, family, plan, of_model: None, faults: &faults };
        done = write_share(job, &asked, share, progress).await;
    }
    let done = done.map_err(|e| name_wanted(e, output.folder(), None))?;
    output.rest();
    Ok(done)
}

/// [`once_more`] of a share.
async fn share_once_more<B: Layers>(
    job: &Job<'_, B>,
    asked: &Asked<'_>,
    share: Share,
    progress: &mut dyn Progress,
) -> Result<ShareDone, Error> {
    loop {
        match write_share(Job { ..*job }, asked, share, progress).await {
            Err(error) => try_again(job, error, progress).await?,
            done => return done,
        }
    }
}

async fn write_share<B: Layers>(
    job: Job<'_, B>,
    asked: &Asked<'_>,
    share: Share,
    progress: &mut dyn Progress,
) -> Result<ShareDone, Error> {
    let Job { recipe, plan, .. } = job;
    let &Asked { output, options, .. } = asked;
    let folder = output.folder();
    check_share(recipe)?;
    let keep = options.keep_delta.is_some();
    let Begun { ledger, units, mut flow, of_model } = begin(&job, asked, keep, progress).await?;
    let job = Job { of_model: of_model.as_ref(), ..job };
    let own = shares::of(&shares::costs(plan, &units), share.index, share.count);
    if !share.of_files {
        drop(spill(&job, &ledger, (&units, own.clone()), None, &mut flow, progress).await?);
    }
    let mut done = ShareDone { batches: own.len(), of_batches: units.len(), files: 0 };
    if share.of_files || units.is_empty() {
        journal::check_all_done(&job, &ledger, &units, folder)?;
        let spilled = spill(&job, &ledger, (&units, 0..units.len()), None, &mut flow, progress).await?;
        let betas = betas(&job, &spilled.outcomes);
        let (searched, _) = searched(&job, &spilled, &betas, &ledger, progress).await?;
        let job = Job { plan: &searched, ..job };
        let files =
            Files { share: Some((share.index, share.count)), ..files(&ledger, folder, options, plan) };
        done.files = write_files(&job, (&spilled, &betas), &files, &mut flow, progress).await?;
    }
    ledger.sync()?;
    Ok(done)
}

/// The files beside the base's weights, and the modules with weights of their own.
fn beside(family: &Family) -> Result<(Sidecars, Vec<Module>), Error> {
    let base = &family.base;
    let mut sidecars = base.folder().map(Sidecars::find).transpose()?.unwrap_or_default();
    if base.names().any(|name| base.is_coded(name)) {
        sidecars = sidecars.for_floats();
    }
    let modules = modules::find(family, &sidecars);
    Ok((sidecars, modules))
}

fn notes(sidecars: &Sidecars, modules: &[Module]) -> Vec<String> {
    sidecars.warnings().iter().cloned().chain(modules.iter().filter_map(Module::note)).collect()
}

/// What is said of the files beside the base's weights, found out before any work; an error where they cannot be used.
pub fn check_files_beside(family: &Family) -> Result<Vec<String>, Error> {
    let (sidecars, modules) = beside(family)?;
    Ok(notes(&sidecars, &modules))
}

/// Inter-layer scales, layer by layer.
pub(super) fn betas<B>(job: &Job<'_, B>, outcomes: &[Outcome]) -> Vec<f64> {
    let norms: Vec<f64> = outcomes.iter().map(|o| o.norm).collect();
    let groups: Vec<Option<&str>> = job.plan.layers.iter().map(|l| l.group.as_deref()).collect();
    assembly::inter_layer_scales(&norms, &groups, job.esm_options().and_then(|o| o.inter_layer))
}

/// What is written for every tensor, in the order of the base.
fn steps<B>(job: &Job<'_, B>, betas: &[f64]) -> IndexMap<String, Step> {
    let mut found: IndexMap<&str, Step> = IndexMap::new();
    for (layer, &beta) in job.plan.layers.iter().zip(betas) {
        let alpha = if layer.scaled { job.plan.alpha } else { 1.0 };
        for part in &layer.parts {
            let stored = job.family.base.written_as(&part.name);
            let step = match (layer.role, stored) {
                (Role::Base, _) | (_, None) => Step::Copy,
                (Role::Pretrained, Some(stored)) => {
                    Step::Keep { dtype: job.recipe.out_dtype.unwrap_or(stored) }
                }
                (_, Some(stored)) => {
                    Step::Merge { alpha, beta, dtype: job.recipe.out_dtype.unwrap_or(stored) }
                }
            };
            found.insert(&part.name, step);
        }
    }
    job.family.base.names().filter_map(|name| Some((name.to_owned(), *found.get(name)?))).collect()
}

fn check_fingerprints(family: &Family) -> Result<(), Error> {
    for expert in &family.experts {
        if let Some(calibration) = &expert.calibration {
            calibration.check_fingerprint(&expert.own)?;
        }
    }
    Ok(())
}

/// Bytes that the progress bar counts: weights read in the first half and for experts, weights written in the second.
fn work<B>(job: &Job<'_, B>, keep: bool) -> u64 {
    let first = job.plan.layers.iter().filter(|l| is_spilled(l, keep));
    let routed = job.plan.experts.iter().flat_map(|e| &e.layers).map(|routed| &routed.layer);
    let first: u64 = first.chain(routed).map(|l| layer_bytes(job, l)).sum();
    let written = |meta: &TensorMeta| match job.recipe.out_dtype {
        Some(dtype) if meta.float().is_some() => (dtype.size() * meta.elements()) as u64,
        _ => meta.bytes,
    };
    let base = &job.family.base;
    first + base.names().filter_map(|name| base.get(name)).map(written).sum::<u64>()
}
