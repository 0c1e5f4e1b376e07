//! Alpha found by running the merged model: on labelled samples by its accuracy, or without labels by how far its
//! features have moved the way the experts' did.

use super::candidate::Candidate;
use super::store::Store;
use super::{Error, Job, Progress};
use crate::backend::layers::Layers;
use crate::checkpoint::journal::Ledger;
use crate::data::{self, Classifier, ModelSource, Split, Task};
use crate::eval::{Evaluator, PROBES, linear_cka, peak, predict};
use crate::model::{self, Hidden, NoTap, Pooling, Samples};
use crate::plan::{SearchSamples, expert_source, read_proxies};
use crate::recipe::Proxies;
use crate::report;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Alpha by the plan's search; none if the recipe has a number.
pub(super) async fn alpha<B: Layers>(
    job: &Job<'_, B>,
    deltas: &Store,
    betas: &[f64],
    ledger: &Ledger,
    progress: &mut dyn Progress,
) -> Result<Option<(f64, report::AlphaSearch)>, Error> {
    let Some(search) = &job.plan.search else { return Ok(None) };
    let base = ModelSource::checkpoint(&job.recipe.base_model)?;
    let evaluator = Evaluator::new(job.backend, &base)?;
    let mut exercises = Vec::new();
    for (t, on) in search.on.iter().enumerate() {
        exercises.push(match on {
            SearchSamples::Labelled { task, split } => labelled(&evaluator, task, split)?,
            SearchSamples::Proxies(proxies) => unlabelled(job, &evaluator, t, proxies).await?,
        });
    }
    let mut candidate = Candidate { base: &base, deltas, factors: factors(job, betas), alpha: 0.0 };
    embed_once(job, &candidate, &evaluator, &mut exercises)?;
    let mut done = 0;
    let (best, probes) = peak(async |alpha| {
        progress.probe(alpha, done, PROBES.max(done + 1));
        done += 1;
        candidate.alpha = alpha;
        let unit = format!("alpha/{alpha}");
        if let Some((value, _)) = ledger.done(&unit) {
            return Ok::<f64, Error>(value);
        }
        let value = value(job, &candidate, &evaluator, &exercises).await?;
        ledger.note(&unit, None, &value)?;
        Ok(value)
    })
    .await?;
    Ok(Some((best.alpha, report::AlphaSearch { by: search.by.name(), probes })))
}

/// What the merged model is run on for one expert's task.
struct Exercise<B: Layers> {
    /// Where the samples came from.
    data: PathBuf,
    source: Source,
    pooling: Option<Pooling>,
    goal: Goal,
    /// The embedded samples, where alpha does not change the embedding and there is room for them.
    embedded: Option<Vec<Hidden<B>>>,
}

/// Where the samples are.
enum Source {
    /// In a file, read wave by wave.
    Task { task: Box<Task>, split: Split, waves: Vec<Range<usize>> },
    /// Here: a few.
    Held(Samples),
}

enum Goal {
    /// Predict the labels.
    Labels { classifier: Classifier, labels: Vec<u32> },
    /// Move the unit features from the base's as the expert did.
    Shift { samples: usize, base: Vec<f64>, shift: Vec<f64> },
}

impl<B: Layers> Exercise<B> {
    fn waves(&self) -> usize {
        match &self.source {
            Source::Task { waves, .. } => waves.len(),
            Source::Held(_) => 1,
        }
    }

    fn samples(&self, evaluator: &Evaluator<B>, wave: usize) -> Result<Cow<'_, Samples>, data::Error> {
        match &self.source {
            Source::Task { task, split, waves } => {
                evaluator.samples(task, split, waves[wave].clone()).map(Cow::Owned)
            }
            Source::Held(samples) => Ok(Cow::Borrowed(samples)),
        }
    }
}

fn labelled<B: Layers>(evaluator: &Evaluator<B>, path: &Path, split: &Split) -> Result<Exercise<B>, Error> {
    let task = Task::open(path)?;
    let classifier = evaluator.classifier(&task, None)?;
    let labels = task.labels(&split.name, split.range(task.len(&split.name)?), classifier.head.classes())?;
    let (pooling, waves) = (classifier.pooling, evaluator.waves(&task, split)?);
    let source = Source::Task { task: Box::new(task), split: split.clone(), waves };
    Ok(Exercise {
        data: path.to_path_buf(),
        source,
        pooling,
        goal: Goal::Labels { classifier, labels },
        embedded: None,
    })
}

async fn unlabelled<B: Layers>(
    job: &Job<'_, B>,
    of_base: &Evaluator<'_, B>,
    t: usize,
    proxies: &Proxies,
) -> Result<Exercise<B>, Error> {
    let expert = expert_source(job.recipe, t)?;
    let of_expert = Evaluator::new(job.backend, &expert)?;
    let samples = read_proxies(proxies, job.recipe.seed, &expert, of_expert.inputs())?;
    let pooling = match Task::open(&proxies.data) {
        Ok(task) => task.pooling()?,
        Err(_) => None, // a folder or a text
    };
    let base = unit_rows(&of_base.run(&samples, pooling).await?, samples.len());
    let shift = minus(unit_rows(&of_expert.run(&samples, pooling).await?, samples.len()), &base);
    let goal = Goal::Shift { samples: samples.len(), base, shift };
    Ok(Exercise { data: proxies.data.clone(), source: Source::Held(samples), pooling, goal, embedded: None })
}

/// What multiplies each tensor's delta: a factor, and whether alpha does too.
fn factors<'a, B>(job: &Job<'a, B>, betas: &[f64]) -> HashMap<&'a str, (f64, bool)> {
    let layers = job.plan.layers.iter().zip(betas);
    layers.flat_map(|(l, &beta)| l.parts.iter().map(move |p| (p.name.as_str(), (beta, l.scaled)))).collect()
}

/// Hidden states kept for all alphas may take this much, in bytes.
const EMBEDDED_BYTES: usize = 512 << 20;

/// Where alpha multiplies nothing outside the blocks, the samples are embedded once for all alphas, as long as there is
/// room.
fn embed_once<B: Layers>(
    job: &Job<'_, B>,
    candidate: &Candidate<'_>,
    evaluator: &Evaluator<B>,
    exercises: &mut [Exercise<B>],
) -> Result<(), Error> {
    if job.plan.layers.iter().any(|l| l.scaled && l.block().is_none()) {
        return Ok(());
    }
    let model = candidate.model(job.backend)?;
    let failed = data::Error::model(&job.recipe.base_model);
    let mut bytes = 0;
    for exercise in exercises {
        let mut embedded = Vec::new();
        for wave in 0..exercise.waves() {
            let samples = exercise.samples(evaluator, wave)?;
            let tokens: usize = model.tokens(&samples).map_err(&failed)?.iter().sum();
            bytes += 4 * tokens * model.hidden_size();
            if bytes > EMBEDDED_BYTES {
                return Ok(());
            }
            embedded.push(model.embed(&samples).map_err(&failed)?);
        }
        exercise.embedded = Some(embedded);
    }
    Ok(())
}

/// The mean over the tasks.
async fn value<B: Layers>(
    job: &Job<'_, B>,
    candidate: &Candidate<'_>,
    evaluator: &Evaluator<'_, B>,
    exercises: &[Exercise<B>],
) -> Result<f64, Error> {
    let model = candidate.model(job.backend)?;
    let failed = data::Error::model(&job.recipe.base_model);
    let lost = |exercise: &Exercise<B>, reason: String| Error::Search {
        alpha: candidate.alpha,
        data: exercise.data.clone(),
        reason,
    };
    let mut sum = 0.0;
    for exercise in exercises {
        let mut features = Vec::new();
        for wave in 0..exercise.waves() {
            let of_wave = match &exercise.embedded {
                Some(embedded) => model.run_embedded(&embedded[wave], exercise.pooling, &mut NoTap).await,
                None => model.run(&*exercise.samples(evaluator, wave)?, exercise.pooling, &mut NoTap).await,
            };
            features.extend(of_wave.map_err(|e| match e {
                model::Error::NotFinite { .. } => lost(exercise, e.to_string()),
                other => failed(other).into(),
            })?);
        }
        let value = match &exercise.goal {
            Goal::Labels { classifier, labels } => {
                let predicted = predict(classifier, &features).map_err(|e| lost(exercise, e.to_string()))?;
                let right = predicted.iter().zip(labels).filter(|(p, l)| p == l).count();
                right as f64 / labels.len().max(1) as f64
            }
            Goal::Shift { samples, base, shift } => {
                let moved = minus(unit_rows(&features, *samples), base);
                linear_cka(&moved, shift, *samples).unwrap_or(0.0) // of features that have not moved
            }
        };
        if !value.is_finite() {
            return Err(lost(exercise, format!("its value is {value}")));
        }
        sum += value;
    }
    Ok(sum / exercises.len().max(1) as f64)
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
