//! Models on tasks.

use super::accuracy::{Accuracy, predict};
use crate::backend::layers::Layers;
use crate::data::{Error, ModelSource, Preprocessor, Split, Task};
use crate::model::{InputKind, Model, NoTap, Pooling, Samples, Tap};
use std::ops::Range;

/// Features of the samples of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// `samples x d`, row-major.
    pub values: Vec<f32>,
    /// How many samples.
    pub samples: usize,
}

/// Bytes that the hidden states of the samples on their way may take; more samples go in several waves.
const HIDDEN_BYTES: usize = 256 << 20;

/// Evaluates one model.
pub struct Evaluator<'a, B: Layers> {
    source: &'a ModelSource,
    model: Model<'a, B>,
}

impl<'a, B: Layers> Evaluator<'a, B> {
    /// Makes a model ready.
    pub fn new(backend: &'a B, source: &'a ModelSource) -> Result<Self, Error> {
        Ok(Evaluator { source, model: source.model(backend)? })
    }

    /// What the model takes.
    pub fn inputs(&self) -> InputKind {
        self.model.inputs()
    }

    /// Features of a split's samples, a wave at a time.
    pub async fn features(&self, task: &Task, split: &Split) -> Result<Features, Error> {
        self.features_through(task, split, &mut NoTap).await
    }

    /// The same, with something standing in the forward pass.
    pub async fn features_through(
        &self,
        task: &Task,
        split: &Split,
        tap: &mut impl Tap<B>,
    ) -> Result<Features, Error> {
        let range = split.range(task.len(&split.name)?);
        if range.is_empty() {
            return Err(Error::bad(task.path(), format!("the split {split} holds no samples")));
        }
        let pooling = task.pooling()?;
        let mut values = Vec::new();
        let (samples, wave) = (range.len(), self.wave(task, split, range.clone())?);
        for start in range.clone().step_by(wave) {
            let samples = self.samples(task, split, start..range.end.min(start + wave))?;
            let run = self.model.run(&samples, pooling, tap).await;
            values.extend(run.map_err(Error::model(self.source.path()))?);
        }
        Ok(Features { values, samples })
    }

    /// Features of samples that are at hand.
    pub async fn run(&self, samples: &Samples, pooling: Option<Pooling>) -> Result<Vec<f32>, Error> {
        self.model.run(samples, pooling, &mut NoTap).await.map_err(Error::model(self.source.path()))
    }

    /// Accuracy of the predictions that a task's head makes of features.
    pub fn accuracy(&self, task: &Task, split: &Split, features: &Features) -> Result<Accuracy, Error> {
        let range = split.range(task.len(&split.name)?);
        let head = task.head()?;
        let d = features.values.len() / features.samples.max(1);
        if head.width() != d {
            return Err(Error::bad(
                task.path(),
                format!(
                    "its head takes features of {} values, but {} gives {d}",
                    head.width(),
                    self.source.path().display()
                ),
            ));
        }
        let labels = task.labels(&split.name, range, head.classes())?;
        Ok(Accuracy::of(&predict(&head, &features.values), &labels))
    }

    /// The samples of a split, prepared for this model.
    pub fn samples(&self, task: &Task, split: &Split, range: Range<usize>) -> Result<Samples, Error> {
        let size = match self.inputs() {
            InputKind::Images { size, .. } => size,
            InputKind::Text { .. } => 0,
        };
        let preprocessor = || Preprocessor::open(self.source.folder(), self.source.config(), size);
        task.samples(&split.name, range, preprocessor)
    }

    /// How many samples go together, judged by the first.
    fn wave(&self, task: &Task, split: &Split, range: Range<usize>) -> Result<usize, Error> {
        let first = self.samples(task, split, range.start..range.start + 1)?;
        let tokens = match self.inputs() {
            InputKind::Images { tokens, .. } => tokens,
            InputKind::Text { .. } => {
                let each = self.model.tokens(&first).map_err(Error::model(self.source.path()))?;
                each.first().copied().unwrap_or(1).max(32)
            }
        };
        Ok((HIDDEN_BYTES / (4 * tokens * self.model.hidden_size()).max(1)).max(1))
    }
}
