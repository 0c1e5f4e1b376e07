//! The samples that models are run on during a merge, for calibration and for the choice of alpha: everything that can be
//! wrong with them is found before the first layer is merged.

use super::{Error, Family};
use crate::backend::cpu::Cpu;
use crate::data::{self, ModelSource, Split, Task};
use crate::eval::Evaluator;
use crate::model::{InputKind, Samples};
use crate::recipe::{self, Alpha, Calibration, Model, Proxies, Recipe, Search, Source};
use serde::Serialize;
use std::path::PathBuf;

/// A search for alpha.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AlphaSearch {
    /// `accuracy` or `consistency`.
    #[serde(serialize_with = "by_name")]
    pub by: Search,
    /// What the merged model is run on, one an expert.
    pub on: Vec<SearchSamples>,
}

/// What the merged model is run on for one expert.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchSamples {
    /// Labelled samples.
    Labelled {
        /// A task file.
        task: PathBuf,
        /// Which of its samples.
        split: Split,
    },
    /// Samples without labels.
    Proxies(Proxies),
}

fn by_name<S: serde::Serializer>(by: &Search, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(by.name())
}

/// Samples taken from a task file whose expert is calibrated otherwise.
const PROXIES: usize = 32;

/// Every expert that is to run during the merge can run, on samples that it takes.
pub(super) fn check_proxies(recipe: &Recipe, family: &Family) -> Result<(), Error> {
    for (t, expert) in family.experts.iter().enumerate() {
        if let Some(proxies) = &expert.proxies {
            check_run(recipe, t, proxies)?;
        }
    }
    Ok(())
}

/// The search that the recipe asks for, every file of it opened and found fit.
pub(super) fn alpha_search(recipe: &Recipe) -> Result<Option<AlphaSearch>, Error> {
    let Alpha::Search { by, split } = recipe.method.alpha() else { return Ok(None) };
    let base = ModelSource::checkpoint(&recipe.base_model)?;
    let mut on = Vec::with_capacity(recipe.models.len());
    for (t, model) in recipe.models.iter().enumerate() {
        on.push(match by {
            Search::Accuracy => labelled(recipe, &base, t, model, split.as_ref())?,
            Search::Consistency => unlabelled(recipe, t, model)?,
        });
    }
    Ok(Some(AlphaSearch { by: *by, on }))
}

/// The labelled samples of an expert's task.
fn labelled(
    recipe: &Recipe,
    base: &ModelSource,
    t: usize,
    model: &Model,
    split: Option<&Split>,
) -> Result<SearchSamples, Error> {
    let Some(path) = &model.task else {
        let why = "missing: a search of alpha by accuracy needs labelled samples of every expert's task; give a task file \
                   (docs/formats.md), or search by consistency, which needs no labels";
        return Err(key_error(recipe, format!("models[{t}].task"), why.to_owned()));
    };
    let task = Task::open(path)?;
    let split = match split {
        Some(split) => split.clone(),
        None if task.has("val") => Split::whole("val"),
        None => {
            let why = format!(
                "{} has no split `val` to choose alpha on; name other samples with `split`, such as {{search: accuracy, \
                 split: 'test[:20%]'}}, and report the rest",
                path.display()
            );
            return Err(key_error(recipe, "parameters.alpha".to_owned(), why));
        }
    };
    check_task(base, &task, &split)?;
    Ok(SearchSamples::Labelled { task: path.clone(), split })
}

/// The merged model takes these samples, and its features fit the head, and the labels too.
fn check_task(base: &ModelSource, task: &Task, split: &Split) -> Result<(), Error> {
    let model = base.model(&Cpu)?;
    let range = split.range(task.len(&split.name)?);
    if range.is_empty() {
        return Err(data::Error::bad(task.path(), format!("the split {split} holds no samples")).into());
    }
    let classifier = data::classifier_of(base, task, None)?;
    task.check_width(&classifier, base.path(), model.feature_size())?;
    task.labels(&split.name, range.clone(), classifier.head.classes())?;
    // images of a file are all of one shape: the first tells; texts are read to the end
    let inputs = model.inputs();
    let range = match inputs {
        InputKind::Images { .. } => range.start..range.start + 1,
        InputKind::Text { .. } => range,
    };
    Evaluator::new(&Cpu, base)?.samples(task, split, range)?;
    Ok(())
}

/// The proxies of an expert: those it is calibrated on, or its task's.
fn unlabelled(recipe: &Recipe, t: usize, model: &Model) -> Result<SearchSamples, Error> {
    let proxies = match (&model.calibration, &model.task) {
        (Calibration::Data(proxies), _) => proxies.clone(),
        (_, Some(task)) => Proxies { data: task.clone(), samples: PROXIES, max_length: None },
        _ => {
            let why = "missing: a search of alpha by consistency needs samples of every expert's task; give a `task` file \
                       with proxies (docs/formats.md), or `calibration: {data: PATH}`";
            return Err(key_error(recipe, format!("models[{t}].task"), why.to_owned()));
        }
    };
    check_run(recipe, t, &proxies)?;
    Ok(SearchSamples::Proxies(proxies))
}

/// An expert can be run on some samples.
fn check_run(recipe: &Recipe, t: usize, proxies: &Proxies) -> Result<(), Error> {
    let expert = expert_source(recipe, t)?;
    let inputs = expert.model(&Cpu)?.inputs();
    read_proxies(proxies, recipe.seed, &expert, inputs)?;
    Ok(())
}

/// The samples that a recipe names, as a model takes them.
pub fn read_proxies(
    proxies: &Proxies,
    seed: u64,
    model: &ModelSource,
    inputs: InputKind,
) -> Result<Samples, data::Error> {
    let choice = data::Proxies { samples: proxies.samples, seed, max_length: proxies.max_length };
    choice.read(&proxies.data, model, inputs)
}

/// The samples on which an expert's head can be refitted: its task's, else those it is calibrated on.
pub fn head_data(model: &Model) -> Option<PathBuf> {
    match (&model.task, &model.calibration) {
        (Some(task), _) => Some(task.clone()),
        (None, Calibration::Data(proxies)) => Some(proxies.data.clone()),
        _ => None,
    }
}

/// An expert as a model to run.
pub fn expert_source(recipe: &Recipe, t: usize) -> Result<ModelSource, data::Error> {
    match &recipe.models[t].source {
        Source::Checkpoint(path) => ModelSource::checkpoint(path),
        Source::Delta(path) => ModelSource::with_delta(&recipe.base_model, path),
        Source::Adapter { model, adapter } => {
            ModelSource::with_adapter(model.as_ref().unwrap_or(&recipe.base_model), adapter)
        }
    }
}

fn key_error(recipe: &Recipe, key: String, why: String) -> Error {
    recipe::Error::new(&recipe.path, None, key, why).into()
}
