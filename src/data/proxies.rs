//! Proxies: the few unlabelled samples an expert is run on for calibration.

use super::rng::Rng;
use super::{Error, ModelSource, Task, images, text};
use crate::model::{Grid, Images, InputKind, Samples, Tokens};
use std::path::Path;

/// Which samples to take.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxies {
    /// How many at most.
    pub samples: usize,
    /// Chooses among the images of a folder and the lines of a file. Of a safetensors file the first samples are taken.
    pub seed: u64,
    /// Cuts texts to this many tokens.
    pub max_length: Option<usize>,
}

impl Proxies {
    /// Samples from a folder of images, a text file, JSON lines, or a safetensors file, prepared for a model.
    pub fn read(&self, data: &Path, model: &ModelSource, inputs: InputKind) -> Result<Samples, Error> {
        let safetensors = data.extension().is_some_and(|e| e == "safetensors");
        let samples = match inputs {
            _ if !data.exists() => {
                return Err(Error::bad(data, "there is no such file or folder of samples"));
            }
            _ if safetensors => self.tensors_of(data, model, inputs)?,
            InputKind::Images { .. } if data.is_dir() => {
                let images = images::from_folder(data, self.samples, self.seed)?;
                Samples::Images(model.preprocessor(inputs)?.apply(images))
            }
            InputKind::Images { .. } => {
                let reason = "this model takes images; give a folder of them, or a safetensors file";
                return Err(Error::bad(data, reason));
            }
            InputKind::Text { .. } if data.is_dir() => {
                let reason = "this model reads text; give a text file, JSON lines, or a safetensors file";
                return Err(Error::bad(data, reason));
            }
            InputKind::Text { .. } => Samples::Text(text::from_file(
                data,
                model.folder(),
                self.samples,
                self.seed,
                self.max_length,
            )?),
        };
        if samples.is_empty() {
            return Err(Error::bad(data, "it holds no samples"));
        }
        Ok(samples)
    }

    /// The `proxy` split of a task file, or tensors without a split.
    fn tensors_of(&self, data: &Path, model: &ModelSource, inputs: InputKind) -> Result<Samples, Error> {
        let task = Task::open(data)?;
        let Some(split) = ["proxy", ""].into_iter().find(|split| task.has(split)) else {
            return Err(Error::bad(
                data,
                "it has no samples to calibrate with: expected `proxy.input_ids`, `proxy.pixels` or `proxy.pixel_values`, \
                 or the same without `proxy.`",
            ));
        };
        let samples = task.samples(split, 0..self.samples, || model.preprocessor(inputs))?;
        Ok(match (samples, self.max_length) {
            (Samples::Text(texts), Some(length)) => {
                Samples::Text(texts.into_iter().map(|t| cut(t, length)).collect())
            }
            (samples, _) => samples,
        })
    }
}

fn cut(mut text: Tokens, length: usize) -> Tokens {
    text.ids.truncate(length);
    text.types.truncate(length);
    text
}

/// Tokens of a synthetic text.
const SYNTHETIC_LENGTH: usize = 64;

/// Samples for users who have none: noise images (standard normal after normalisation), or texts of random tokens.
pub fn synthetic(inputs: InputKind, samples: usize, seed: u64) -> Samples {
    let mut rng = Rng::new(seed);
    match inputs {
        InputKind::Images { grid: Grid { channels, image: size, .. }, .. } => {
            let n = samples * channels * size * size;
            let values = (0..n).map(|_| rng.normal()).collect();
            Samples::Images(Images { count: samples, channels, height: size, width: size, values })
        }
        InputKind::Text { vocabulary, longest } => {
            let length = longest.unwrap_or(SYNTHETIC_LENGTH).clamp(1, SYNTHETIC_LENGTH);
            let text = |_| Tokens {
                ids: (0..length).map(|_| rng.below(vocabulary) as u32).collect(),
                types: Vec::new(),
            };
            Samples::Text((0..samples).map(text).collect())
        }
    }
}
