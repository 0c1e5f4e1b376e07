//! Where a merge writes, and what a later run must find unchanged to go on with its work.

use super::{Error, Faults, Job, Options, shares, spill};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::checkpoint::journal::{FORMAT, Identity, InputFile, Journal, Ledger, files_in};
use crate::checkpoint::{self, Left, OutputDir, TensorMeta};
use crate::host::fs;
use crate::plan::{Family, Layer, Plan, SearchSamples, head_data};
use crate::recipe::{Calibration, Model, Recipe, Source};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Where a merge writes.
#[derive(Debug)]
pub enum Output {
    /// Into a folder that disappears with a run that does not finish.
    Plain(OutputDir),
    /// Into one that lasts, with a journal from which a later run goes on.
    Journaled(Box<Journal>),
}

impl From<OutputDir> for Output {
    fn from(output: OutputDir) -> Output {
        Output::Plain(output)
    }
}

impl From<Journal> for Output {
    fn from(journal: Journal) -> Output {
        Output::Journaled(Box::new(journal))
    }
}

impl Output {
    /// The folder.
    pub fn folder(&self) -> &OutputDir {
        match self {
            Output::Plain(output) => output,
            Output::Journaled(journal) => journal.output(),
        }
    }

    /// The kind of device that the results depend on: this one, or what an earlier run has begun with if the CPU goes on with that.
    pub(super) fn class(&self, backend: &impl Backend, options: &Options) -> String {
        let before = match self {
            Output::Journaled(journal) if options.fallback => journal.before(),
            _ => None,
        };
        let class = backend.class();
        before.filter(|_| class == Cpu.class()).map_or(class, |before| before.device.clone())
    }

    /// Makes ready to begin once more; what the journal has stays.
    pub(super) fn start_over(&self) -> Result<(), checkpoint::Error> {
        let folder = self.folder();
        match checkpoint::journal::is_in(folder.folder()) {
            true => Ok(()),
            false => folder.clear(),
        }
    }

    /// Ends a share of the work, which stays where it is.
    pub(super) fn rest(self) {
        if let Output::Journaled(journal) = self {
            journal.rest();
        }
    }

    /// Gives the output its name.
    pub(super) fn finish(self) -> Result<(), checkpoint::Error> {
        match self {
            Output::Plain(output) => output.finish(),
            Output::Journaled(journal) => journal.finish(),
        }
    }

    /// What a killed run had left of this output that was of no use.
    pub(super) fn left(&self) -> Option<&Left> {
        match self {
            Output::Plain(output) => output.left(),
            Output::Journaled(journal) => journal.left(),
        }
    }

    /// What is done already, and the units of work: these, or those of whoever began.
    pub(super) fn ledger<B: Backend>(
        &self,
        job: &Job<'_, B>,
        units: Vec<Vec<usize>>,
        (options, class): (&Options, &str),
    ) -> Result<(Ledger, Vec<Vec<usize>>), Error> {
        let journal = match self {
            Output::Plain(output) => return Ok((Ledger::forgetful(output.folder()), units)),
            Output::Journaled(journal) => journal,
        };
        let (ledger, first) = journal.begin(identity_of(job, &units, options, class)?)?;
        let places: HashMap<&str, usize> =
            job.plan.layers.iter().enumerate().map(|(i, layer)| (&*layer.name, i)).collect();
        let unit = |names: &Vec<String>| names.iter().map(|name| places.get(&**name).copied()).collect();
        let units: Option<Vec<Vec<usize>>> = first.units.iter().map(unit).collect();
        let damaged = || checkpoint::Error::Journal {
            path: journal.output().folder().to_path_buf(),
            reason: "its plan names layers that there are not; begin again with --fresh".to_owned(),
        };
        Ok((ledger, units.ok_or_else(damaged)?))
    }
}

/// What the results of a merge depend on.
pub fn identity<B: Backend>(
    backend: &B,
    (recipe, family, plan): (&Recipe, &Family, &Plan),
    options: &Options,
) -> Result<Identity, Error> {
    let faults = Faults::default();
    let job = Job { backend, recipe, family, plan, of_model: None, faults: &faults };
    identity_of(&job, &spill::units(&job, options.keep_delta.is_some()), options, &backend.class())
}

fn identity_of<B: Backend>(
    job: &Job<'_, B>,
    units: &[Vec<usize>],
    options: &Options,
    class: &str,
) -> Result<Identity, Error> {
    let mut flags =
        BTreeMap::from([("--out-shard-size".to_owned(), format!("{} bytes", options.shard_size))]);
    for change in &options.overrides {
        let (flag, value) = change.split_once(' ').unwrap_or((change, ""));
        let values = flags.entry(flag.to_owned()).or_default();
        if !values.is_empty() {
            values.push_str(", ");
        }
        values.push_str(value);
    }
    if options.keep_delta.is_some() {
        flags.insert("--keep-delta".to_owned(), "given".to_owned());
    }
    let mut inputs = BTreeMap::new();
    for path in inputs_of(job)? {
        let file = InputFile::of(&path, options.verify)?;
        inputs.insert(absolute(&path), file);
    }
    let names = |unit: &Vec<usize>| unit.iter().map(|&i| job.plan.layers[i].name.clone()).collect();
    Ok(Identity {
        format: FORMAT.to_owned(),
        version: env!("ESMERGE_VERSION").to_owned(),
        recipe: job.recipe.text.clone(),
        recipe_path: absolute(&job.recipe.path),
        flags,
        device: class.to_owned(),
        inputs,
        units: units.iter().map(names).collect(),
    })
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// Every file that a merge may read, but for the recipe.
fn inputs_of<B>(job: &Job<'_, B>) -> Result<BTreeSet<PathBuf>, Error> {
    let mut paths: BTreeSet<PathBuf> = BTreeSet::new();
    let experts = job.family.experts.iter().flat_map(|expert| [&expert.weights, &expert.own]);
    for model in std::iter::once(&job.family.base).chain(experts) {
        for path in model.files().chain(model.folder()) {
            paths.extend(files_in(path)?);
        }
    }
    for path in job.recipe.models.iter().flat_map(paths_of) {
        paths.extend(files_in(&path)?);
    }
    for on in job.plan.search.iter().flat_map(|search| &search.on) {
        let path = match on {
            SearchSamples::Labelled { task, .. } => task,
            SearchSamples::Proxies(proxies) => &proxies.data,
        };
        paths.extend(files_in(path)?);
    }
    if let Some(folder) = job.family.tokens.as_ref().and_then(|tokens| tokens.folder.as_ref()) {
        paths.extend(files_in(folder)?);
    }
    Ok(paths)
}

/// What a recipe names for an expert.
fn paths_of(model: &Model) -> Vec<PathBuf> {
    let mut paths = vec![model.source.path().to_path_buf()];
    if let Source::Adapter { model: Some(own), .. } = &model.source {
        paths.push(own.clone());
    }
    match &model.calibration {
        Calibration::File(path) => paths.push(path.clone()),
        Calibration::Data(proxies) => paths.push(proxies.data.clone()),
        Calibration::Unset | Calibration::None => {}
    }
    paths.extend(model.task.clone());
    paths.extend(head_data(model));
    paths
}

/// What an earlier run has left to use, as a sentence; none if that is nothing.
pub(super) fn reused(ledger: &Ledger, units: usize) -> Option<String> {
    let kinds = [
        (spill::UNITS, format!("of {units} batches of layers")),
        ("alpha/", "alphas tried".to_owned()),
        ("file/", "files of the output".to_owned()),
        ("experts/", "layers of experts".to_owned()),
    ];
    let done = kinds.iter().map(|(prefix, what)| (ledger.count(prefix), what)).filter(|(n, _)| *n > 0);
    let done: Vec<String> = done.map(|(n, what)| format!("{n} {what}")).collect();
    (!done.is_empty()).then(|| format!("done already, and used: {}", done.join(", ")))
}

/// Refuses to go on while batches of layers are missing; says by which shares, and how they are done.
pub(super) fn check_all_done<B>(
    job: &Job<'_, B>,
    ledger: &Ledger,
    units: &[Vec<usize>],
    output: &OutputDir,
) -> Result<(), Error> {
    let is_missing = |unit: &usize| !ledger.has(&spill::unit_name(*unit));
    let missing = (0..units.len()).filter(is_missing).count();
    if missing == 0 {
        return Ok(());
    }
    let command = format!("esmerge merge {} {}", job.recipe.path.display(), output.wanted().display());
    let writers = ledger.writers()?.into_iter().filter(|name| !name.starts_with("files-"));
    let counts = writers.filter_map(|name| name.split_once("-of-")?.1.parse::<usize>().ok());
    let how = match counts.max() {
        Some(count) if count > 1 => {
            let costs = shares::costs(job.plan, units);
            let own = |index: &usize| shares::of(&costs, *index, count).any(|unit| is_missing(&unit));
            let lacking: Vec<usize> = (1..=count).filter(own).collect();
            let numbers: Vec<String> = lacking.iter().take(20).map(usize::to_string).collect();
            let more = if lacking.len() > 20 { ", ..." } else { "" };
            let first = lacking.first().unwrap_or(&1);
            format!(
                "of shares {}{more} of {count}; do each: {command} --shard {first}/{count}",
                numbers.join(", ")
            )
        }
        _ => format!("; do them: {command}"),
    };
    let space = if how.starts_with(';') { "" } else { ", " };
    let reason = format!("{missing} of {} batches of layers are not merged yet{space}{how}", units.len());
    Err(checkpoint::Error::Journal { path: output.folder().to_path_buf(), reason }.into())
}

/// Removes what an earlier run did not finish among the output's files.
pub(super) fn clean(ledger: &Ledger, output: &Path) -> Result<(), Error> {
    if !ledger.is_listed() {
        return Ok(());
    }
    for path in files_in(output)? {
        let name = path.strip_prefix(output).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        if !ledger.has_file(&name) {
            fs::remove_file(&path).map_err(checkpoint::Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Bytes that a merge writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// The output.
    pub output: u64,
    /// What lasts until that is complete, with a journal.
    pub journal: u64,
    /// Deltas that are kept.
    pub deltas: u64,
}

/// How much room a merge takes on disk.
pub fn space(recipe: &Recipe, family: &Family, plan: &Plan, kept: bool) -> Space {
    let base = &family.base;
    let written = |meta: &TensorMeta| match recipe.out_dtype {
        Some(dtype) if meta.float().is_some() => (dtype.size() * meta.elements()) as u64,
        _ => meta.bytes,
    };
    let model: u64 = base.names().filter_map(|name| base.get(name)).map(written).sum();
    let routed = plan.experts.iter().flat_map(|experts| &experts.layers).map(|routed| &routed.layer);
    let factors = |layer: &Layer| 4 * (family.experts.len() * layer.rank * (layer.d_out + layer.d_in)) as u64;
    let experts: u64 = routed.map(factors).sum();
    let deltas = spill::delta_bytes(plan, kept);
    match recipe.adapter {
        Some(_) => Space { output: 0, journal: 0, deltas: 0 }, // a few megabytes
        None => Space { output: model + experts, journal: deltas + experts, deltas },
    }
}
