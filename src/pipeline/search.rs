//! Alpha found by running the merged model: on labelled samples by its accuracy, or without labels by how far its
//! features have moved the way the experts' did.

use super::{Error, Job, capture};
use crate::backend::Dtype;
use crate::backend::layers::Layers;
use crate::checkpoint::DeltaWriter;
use crate::data::{self, Head, ModelSource, Proxies, Split, Task};
use crate::eval::{Accuracy, Evaluator, linear_cka, peak, predict};
use crate::model::{Config, Hidden, Model, NoTap, Pooling, Samples, Stored, Weights, WeightsError};
use crate::recipe::{Calibration, Search};
use crate::report::AlphaSearch;
use std::collections::HashMap;
use std::ops::Range;

/// Alpha by the recipe's search; none if the recipe has a number.
pub(super) async fn alpha<B: Layers>(
    job: &Job<'_, B>,
    deltas: &DeltaWriter,
    betas: &[f64],
) -> Result<Option<(f64, AlphaSearch)>, Error> {
    let Some((by, split)) = job.search() else { return Ok(None) };
    let base = ModelSource::checkpoint(&job.recipe.base_model)?;
    let mut tasks = Vec::new();
    for t in 0..job.family.experts.len() {
        tasks.push(match by {
            Search::Accuracy => labelled(job, &base, t, split)?,
            Search::Consistency => unlabelled(job, &base, t).await?,
        });
    }
    let mut candidate = Candidate { base: &base, deltas, factors: factors(job, betas), alpha: 0.0 };
    embed_once(job, &candidate, &mut tasks)?;
    let (best, probes) = peak(async |alpha| {
        candidate.alpha = alpha;
        value(job, &candidate, &tasks).await
    })
    .await?;
    let by = match by {
        Search::Accuracy => "accuracy",
        Search::Consistency => "consistency",
    };
    Ok(Some((best.alpha, AlphaSearch { by, probes })))
}

/// What the merged model is run on for one expert's task.
struct Exercise<B: Layers> {
    samples: Samples,
    pooling: Option<Pooling>,
    goal: Goal,
    /// The embedded samples, where alpha does not change the embedding.
    embedded: Option<Hidden<B>>,
}

enum Goal {
    /// Predict the labels.
    Labels { head: Head, labels: Vec<u32> },
    /// Move the unit features from the base's as the expert did.
    Shift { base: Vec<f64>, shift: Vec<f64> },
}

fn labelled<B: Layers>(
    job: &Job<'_, B>,
    base: &ModelSource,
    t: usize,
    split: Option<&Split>,
) -> Result<Exercise<B>, Error> {
    let model = &job.recipe.models[t];
    let Some(path) = &model.task else {
        return Err(Error::Search(format!(
            "`accuracy` needs labelled samples; give models[{t}] a `task` file"
        )));
    };
    let task = Task::open(path)?;
    let split = match split {
        Some(split) => split.clone(),
        None if task.has("val") => Split::whole("val"),
        None => {
            return Err(Error::Search(format!(
                "{} has no split `val`; name the samples to choose alpha on, such as `split: test[:20%]`, and report the \
                 others",
                path.display()
            )));
        }
    };
    let evaluator = Evaluator::new(job.backend, base)?;
    let range = split.range(task.len(&split.name)?);
    let samples = evaluator.samples(&task, &split, range.clone())?;
    let head = task.head()?;
    let labels = task.labels(&split.name, range, head.classes())?;
    Ok(Exercise { samples, pooling: task.pooling()?, goal: Goal::Labels { head, labels }, embedded: None })
}

async fn unlabelled<B: Layers>(job: &Job<'_, B>, base: &ModelSource, t: usize) -> Result<Exercise<B>, Error> {
    let model = &job.recipe.models[t];
    let (path, samples) = match (&model.calibration, &model.task) {
        (Calibration::Data { data, samples }, _) => (data, *samples),
        (_, Some(task)) => (task, PROXIES),
        _ => {
            return Err(Error::Search(format!(
                "`consistency` needs samples; give models[{t}] `calibration: {{data: PATH}}` or a `task` file with proxies"
            )));
        }
    };
    let expert = capture::expert(job, t)?;
    let evaluator = Evaluator::new(job.backend, &expert)?;
    let choice = Proxies { samples, seed: job.recipe.seed, max_length: None };
    let samples = choice.read(path, &expert, evaluator.inputs())?;
    let pooling = match Task::open(path) {
        Ok(task) => task.pooling()?,
        Err(_) => None, // a folder or a text
    };
    let of_base = Evaluator::new(job.backend, base)?.run(&samples, pooling).await?;
    let of_expert = evaluator.run(&samples, pooling).await?;
    let base = unit_rows(&of_base, samples.len());
    let shift = minus(unit_rows(&of_expert, samples.len()), &base);
    Ok(Exercise { samples, pooling, goal: Goal::Shift { base, shift }, embedded: None })
}

/// Proxies of a task whose expert was calibrated otherwise.
const PROXIES: usize = 32;

/// What multiplies each tensor's delta: a factor, and whether alpha does too.
fn factors<'a, B>(job: &Job<'a, B>, betas: &[f64]) -> HashMap<&'a str, (f64, bool)> {
    let layers = job.plan.layers.iter().zip(betas);
    layers.flat_map(|(l, &beta)| l.parts.iter().map(move |p| (p.name.as_str(), (beta, l.scaled)))).collect()
}

/// The merged model at one alpha, before it is written.
struct Candidate<'a> {
    base: &'a ModelSource,
    deltas: &'a DeltaWriter,
    factors: HashMap<&'a str, (f64, bool)>,
    alpha: f64,
}

impl Weights for Candidate<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.shape(name)
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Stored, WeightsError> {
        let stored = self.base.read(name, range.clone())?;
        let (Some(&(beta, scaled)), true) = (self.factors.get(name), self.deltas.contains(name)) else {
            return Ok(stored);
        };
        let factor = (beta * if scaled { self.alpha } else { 1.0 }) as f32;
        let mut sum = stored.to_f32();
        let deltas: Vec<f32> = bytemuck::pod_collect_to_vec(&self.deltas.read(name, range)?);
        sum.iter_mut().zip(deltas).for_each(|(w, d)| *w += factor * d);
        Ok(Stored { dtype: Dtype::F32, bytes: bytemuck::cast_slice(&sum).to_vec() })
    }
}

/// Hidden states kept for all alphas may take this much, in bytes.
const EMBEDDED_BYTES: usize = 512 << 20;

/// Where alpha multiplies nothing outside the blocks, the samples are embedded once for all alphas.
fn embed_once<B: Layers>(
    job: &Job<'_, B>,
    candidate: &Candidate<'_>,
    tasks: &mut [Exercise<B>],
) -> Result<(), Error> {
    if job.plan.layers.iter().any(|l| l.scaled && l.block().is_none()) {
        return Ok(());
    }
    let model = model(job, candidate)?;
    let failed = data::Error::model(&job.recipe.base_model);
    let mut bytes = 0;
    for task in tasks {
        let tokens: usize = model.tokens(&task.samples).map_err(&failed)?.iter().sum();
        bytes += 4 * tokens * model.hidden_size();
        if bytes > EMBEDDED_BYTES {
            break;
        }
        task.embedded = Some(model.embed(&task.samples).map_err(&failed)?);
    }
    Ok(())
}

fn model<'c, B: Layers>(job: &Job<'c, B>, candidate: &'c Candidate<'_>) -> Result<Model<'c, B>, Error> {
    let config = Config::new(candidate.base.config());
    let model = Model::new(job.backend, config, candidate);
    Ok(model.map_err(data::Error::model(&job.recipe.base_model))?)
}

/// The mean over the tasks.
async fn value<B: Layers>(
    job: &Job<'_, B>,
    candidate: &Candidate<'_>,
    tasks: &[Exercise<B>],
) -> Result<f64, Error> {
    let model = model(job, candidate)?;
    let failed = data::Error::model(&job.recipe.base_model);
    let mut sum = 0.0;
    for task in tasks {
        let features = match &task.embedded {
            Some(embedded) => model.run_embedded(embedded, task.pooling, &mut NoTap).await,
            None => model.run(&task.samples, task.pooling, &mut NoTap).await,
        };
        let features = features.map_err(&failed)?;
        sum += match &task.goal {
            Goal::Labels { head, labels } => Accuracy::of(&predict(head, &features), labels).value(),
            Goal::Shift { base, shift } => {
                let n = task.samples.len();
                linear_cka(&minus(unit_rows(&features, n), base), shift, n).unwrap_or(0.0)
            }
        };
    }
    Ok(sum / tasks.len().max(1) as f64)
}

/// Rows of unit length, as a cosine head sees them.
fn unit_rows(features: &[f32], n: usize) -> Vec<f64> {
    let unit = |row: &[f32]| {
        let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        row.iter().map(|&v| if norm > 0.0 { f64::from(v) / norm } else { 0.0 }).collect::<Vec<_>>()
    };
    features.chunks((features.len() / n.max(1)).max(1)).flat_map(unit).collect()
}

fn minus(mut x: Vec<f64>, y: &[f64]) -> Vec<f64> {
    x.iter_mut().zip(y).for_each(|(x, y)| *x -= y);
    x
}
