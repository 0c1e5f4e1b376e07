//! Proxies: the few unlabelled samples an expert is run on for calibration.

use super::chosen::{Chosen, Origin};
use super::{Error, ModelSource, Task, images, text};
use crate::host::PathExt;
use crate::model::{InputKind, Samples};
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
    /// All samples of [`choose`](Proxies::choose) at once.
    pub fn read(&self, data: &Path, model: &ModelSource, inputs: InputKind) -> Result<Samples, Error> {
        let chosen = self.choose(data, model, inputs)?;
        chosen.read(0..chosen.len())
    }

    /// Samples from a folder of images, a text file, JSON lines, or a safetensors file, for a model.
    pub fn choose(&self, data: &Path, model: &ModelSource, inputs: InputKind) -> Result<Chosen, Error> {
        let safetensors = data.extension().is_some_and(|e| e == "safetensors");
        let origin = match inputs {
            _ if !data.is_there() => {
                return Err(Error::bad(data, "there is no such file or folder of samples"));
            }
            _ if safetensors => self.tensors_of(data, model, inputs)?,
            InputKind::Images { grid, .. } if data.leads_to_folder() => {
                let preprocessor = model.preprocessor(grid)?;
                let files = images::choose(data, self.samples, self.seed)?;
                images::check_sizes(&files, &preprocessor)?;
                Origin::Images(files, preprocessor)
            }
            InputKind::Images { .. } => {
                let reason = "this model takes images; give a folder of them, or a safetensors file";
                return Err(Error::bad(data, reason));
            }
            InputKind::Text { .. } if data.leads_to_folder() => {
                let reason = "this model reads text; give a text file, JSON lines, or a safetensors file";
                return Err(Error::bad(data, reason));
            }
            InputKind::Text { .. } => Origin::Texts(text::from_file(
                data,
                model.folder(),
                self.samples,
                self.seed,
                self.max_length,
            )?),
        };
        let chosen = Chosen::new(data, inputs, origin);
        if chosen.is_empty() {
            return Err(Error::bad(data, "it holds no samples"));
        }
        Ok(chosen)
    }

    /// The `proxy` split of a task file, or tensors without a split.
    fn tensors_of(&self, data: &Path, model: &ModelSource, inputs: InputKind) -> Result<Origin, Error> {
        let task = Task::open(data)?;
        let Some(split) = ["proxy", ""].into_iter().find(|split| task.has(split)) else {
            return Err(Error::bad(
                data,
                "it has no samples to calibrate with: expected `proxy.input_ids`, `proxy.pixels` or `proxy.pixel_values`, \
                 or the same without `proxy.`",
            ));
        };
        let count = task.len(split)?.min(self.samples);
        let preprocessor = task.preprocessor(split, model, inputs)?;
        Ok(Origin::Tensors { task: Box::new(task), split, count, preprocessor, max_length: self.max_length })
    }
}
