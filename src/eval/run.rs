//! Models on tasks.

use super::accuracy::predict;
use crate::backend::layers::Layers;
use crate::data::{Classifier, Error, ModelSource, Split, Task, classifier_of};
use crate::model::{InputKind, Model, NoTap, Pooling, Samples, Tap};
use std::ops::Range;
use std::path::Path;

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

    /// What answers a task on this model; `heads` is a folder of heads in place of the model's own.
    pub fn classifier(&self, task: &Task, heads: Option<&Path>) -> Result<Classifier, Error> {
        classifier_of(self.source, task, heads)
    }

    /// Features of a split's samples, a wave at a time.
    pub async fn features(
        &self,
        task: &Task,
        split: &Split,
        pooling: Option<Pooling>,
    ) -> Result<Features, Error> {
        self.features_through(task, split, pooling, &mut NoTap).await
    }

    /// The same, with something standing in the forward pass.
    pub async fn features_through(
        &self,
        task: &Task,
        split: &Split,
        pooling: Option<Pooling>,
        tap: &mut impl Tap<B>,
    ) -> Result<Features, Error> {
        let (mut values, mut samples) = (Vec::new(), 0);
        for wave in self.waves(task, split)? {
            samples += wave.len();
            let run = self.model.run(&self.samples(task, split, wave)?, pooling, tap).await;
            values.extend(run.map_err(Error::model(self.source.path()))?);
        }
        Ok(Features { values, samples })
    }

    /// Features of samples that are at hand.
    pub async fn run(&self, samples: &Samples, pooling: Option<Pooling>) -> Result<Vec<f32>, Error> {
        self.model.run(samples, pooling, &mut NoTap).await.map_err(Error::model(self.source.path()))
    }

    /// Which samples of a split a classifier gets right from their features.
    pub fn right(
        &self,
        task: &Task,
        split: &Split,
        classifier: &Classifier,
        features: &Features,
    ) -> Result<Vec<bool>, Error> {
        let range = split.range(task.len(&split.name)?);
        task.check_width(classifier, self.source.path(), features.values.len() / features.samples.max(1))?;
        let labels = task.labels(&split.name, range, classifier.head.classes())?;
        let predicted =
            predict(classifier, &features.values).map_err(|e| Error::bad(task.path(), e.to_string()))?;
        Ok(predicted.iter().zip(&labels).map(|(p, l)| p == l).collect())
    }

    /// The samples of a split, prepared for this model; those that it does not take are refused by name.
    pub fn samples(&self, task: &Task, split: &Split, range: Range<usize>) -> Result<Samples, Error> {
        let first = range.start;
        let preprocessor = task.preprocessor(&split.name, self.source, self.inputs())?;
        let samples = task.samples(&split.name, range, preprocessor.as_ref())?;
        let name = |i: usize| format!("sample {} of `{}`", first + i, split.name);
        self.inputs().admit(&samples, name).map_err(Error::model(task.path()))?;
        Ok(samples)
    }

    /// A split's samples in order, in ranges whose hidden states are small.
    pub fn waves(&self, task: &Task, split: &Split) -> Result<Vec<Range<usize>>, Error> {
        let range = split.range(task.len(&split.name)?);
        if range.is_empty() {
            return Err(Error::bad(task.path(), format!("the split {split} holds no samples")));
        }
        let wave = self.wave(task, split, range.clone())?;
        Ok(range.clone().step_by(wave).map(|start| start..range.end.min(start + wave)).collect())
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
