//! Samples that were chosen, and are read as they are needed: a folder of photographs decoded is larger than memory.

use super::text::Texts;
use super::{Error, Preprocessor, Task, images};
use crate::model::{InputKind, Samples};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Samples for a model.
pub struct Chosen {
    data: PathBuf,
    inputs: InputKind,
    origin: Origin,
}

pub(super) enum Origin {
    /// Files, all known to come out of preprocessing at one size.
    Images(Vec<PathBuf>, Preprocessor),
    /// Lines of a file.
    Texts(Texts),
    /// So many samples of a split.
    Tensors {
        task: Box<Task>,
        split: &'static str,
        count: usize,
        preprocessor: Option<Preprocessor>,
        max_length: Option<usize>,
    },
}

impl Chosen {
    pub(super) fn new(data: &Path, inputs: InputKind, origin: Origin) -> Chosen {
        Chosen { data: data.to_path_buf(), inputs, origin }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match &self.origin {
            Origin::Images(files, _) => files.len(),
            Origin::Texts(texts) => texts.lines.len(),
            Origin::Tensors { count, .. } => *count,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them, prepared; samples that the model does not take are refused by name.
    pub fn read(&self, range: Range<usize>) -> Result<Samples, Error> {
        let samples = match &self.origin {
            Origin::Images(files, preprocessor) => {
                Samples::Images(images::prepare(&files[range.clone()], preprocessor)?)
            }
            Origin::Texts(texts) => {
                Samples::Text(texts.lines[range.clone()].iter().map(|(_, text)| text.clone()).collect())
            }
            Origin::Tensors { task, split, preprocessor, max_length, .. } => {
                cut(task.samples(split, range.clone(), preprocessor.as_ref())?, *max_length)
            }
        };
        let name = |i: usize| match &self.origin {
            Origin::Texts(Texts { tokenizer, lines }) => {
                let line = lines[range.start + i].0 + 1;
                format!("line {line} (tokenised by {})", tokenizer.display())
            }
            _ => format!("sample {}", range.start + i),
        };
        self.inputs.admit(&samples, name).map_err(Error::model(&self.data))?;
        Ok(samples)
    }
}

fn cut(samples: Samples, max_length: Option<usize>) -> Samples {
    let (mut texts, length) = match (samples, max_length) {
        (Samples::Text(texts), Some(length)) => (texts, length),
        (samples, _) => return samples,
    };
    for text in &mut texts {
        text.ids.truncate(length);
        text.types.truncate(length);
    }
    Samples::Text(texts)
}
