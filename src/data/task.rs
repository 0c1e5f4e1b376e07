//! Task files: samples with labels and a head, by splits.

use super::head::{Classifier, Dense, Head, Squash};
use super::{Error, ModelSource, Preprocessor, integers};
use crate::backend::Dtype;
use crate::checkpoint::TensorFile;
use crate::host::PathExt;
use crate::model::{Images, InputKind, Pooling, Samples, Stored, Tokens};
use image::RgbImage;
use std::ops::Range;
use std::path::Path;

/// A task file, opened and checked.
#[derive(Clone, Debug)]
pub struct Task {
    /// The name by which it is paired with an expert.
    pub name: String,
    file: TensorFile,
}

impl Task {
    /// Opens a file; its name is the one in its metadata, else the file's.
    pub fn open(path: &Path) -> Result<Task, Error> {
        if !path.leads_to_file() {
            return Err(Error::bad(path, "there is no such task file"));
        }
        let file = TensorFile::open(path)?;
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let name = file.metadata().get("task").cloned().unwrap_or(stem);
        Ok(Task { name, file })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Whether it has samples of a split; the empty name stands for tensors without a prefix.
    pub fn has(&self, split: &str) -> bool {
        self.inputs(split).is_some()
    }

    /// Number of samples of a split.
    pub fn len(&self, split: &str) -> Result<usize, Error> {
        let Some(key) = self.inputs(split) else {
            return Err(self.bad(format!(
                "it has no split `{split}`: none of `{split}.input_ids`, `{split}.pixels` and `{split}.pixel_values`"
            )));
        };
        Ok(self.file.meta(&key)?.shape.first().copied().unwrap_or(0))
    }

    /// How features are pooled, where the file says so.
    pub fn pooling(&self) -> Result<Option<Pooling>, Error> {
        let Some(text) = self.file.metadata().get("pooling") else { return Ok(None) };
        match Pooling::from_name(text) {
            Some(pooling) => Ok(Some(pooling)),
            None => {
                Err(self.bad(format!("its metadata says `pooling: {text}`; mean, cls or last is expected")))
            }
        }
    }

    /// What makes the samples of a split ready for a model; nothing unless they are raw images.
    pub fn preprocessor(
        &self,
        split: &str,
        model: &ModelSource,
        inputs: InputKind,
    ) -> Result<Option<Preprocessor>, Error> {
        match inputs {
            InputKind::Images { grid, .. } if self.file.tensors().contains_key(&key(split, "pixels")) => {
                model.preprocessor(grid).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The samples `range` of a split. Raw images need a preprocessor.
    pub fn samples(
        &self,
        split: &str,
        range: Range<usize>,
        preprocessor: Option<&Preprocessor>,
    ) -> Result<Samples, Error> {
        let n = self.len(split)?;
        let range = range.start.min(n)..range.end.min(n);
        if self.file.tensors().contains_key(&key(split, "pixels")) {
            return self.pixels(split, range, preprocessor);
        }
        if self.file.tensors().contains_key(&key(split, "pixel_values")) {
            return self.pixel_values(split, range);
        }
        self.tokens(split, range)
    }

    /// Labels of a split, each below `classes`.
    pub fn labels(&self, split: &str, range: Range<usize>, classes: usize) -> Result<Vec<u32>, Error> {
        let name = key(split, "labels");
        let n = self.len(split)?;
        let found = self.file.meta(&name).map(|m| m.shape.clone());
        match found {
            Ok(shape) if shape == [n] => {}
            Ok(shape) => return Err(self.bad(format!("`{name}` has shape {shape:?} for {n} samples"))),
            Err(_) => return Err(self.bad(format!("it has no `{name}`, so there is no accuracy to measure"))),
        }
        let labels = integers::read(&self.file, &name, range.clone())?;
        match labels.iter().position(|&l| l as usize >= classes) {
            None => Ok(labels),
            Some(i) => Err(self.bad(format!(
                "`{name}` gives sample {} the label {}, but the head has {classes} classes, counted from 0",
                range.start + i,
                labels[i]
            ))),
        }
    }

    /// The head.
    pub fn head(&self) -> Result<Head, Error> {
        if self.file.tensors().contains_key("class_embeddings") {
            let (classes, shape) = self.floats("class_embeddings")?;
            let &[_, d] = &shape[..] else {
                return Err(
                    self.bad(format!("`class_embeddings` has shape {shape:?}; [classes, d] is expected"))
                );
            };
            self.check_head("class_embeddings", &shape)?;
            let scale = self.logit_scale()?;
            return match self.file.metadata().get("class_scores").map(String::as_str) {
                None | Some("cosine") => Ok(Head::Cosine { classes, d, scale }),
                Some("dot") => Ok(Head::Dot { classes, d, scale }),
                Some(other) => {
                    Err(self
                        .bad(format!("its metadata says `class_scores: {other}`; cosine or dot is expected")))
                }
            };
        }
        if self.file.tensors().contains_key("head.weight") {
            let (weight, shape) = self.floats("head.weight")?;
            let &[classes, d] = &shape[..] else {
                return Err(self.bad(format!("`head.weight` has shape {shape:?}; [classes, d] is expected")));
            };
            self.check_head("head.weight", &shape)?;
            let bias = if self.file.tensors().contains_key("head.bias") {
                self.floats("head.bias")?.0
            } else {
                vec![0.0; classes]
            };
            if bias.len() != classes {
                return Err(self.bad(format!("`head.bias` has {} values for {classes} classes", bias.len())));
            }
            return Ok(Head::Linear { weight, d, bias });
        }
        Err(self
            .bad("it has neither `class_embeddings` nor `head.weight`, so nothing can be predicted".into()))
    }

    /// Whether it holds a head at all.
    pub fn has_head(&self) -> bool {
        ["class_embeddings", "head.weight"].iter().any(|name| self.file.tensors().contains_key(*name))
    }

    /// The head with what lies before it.
    pub fn classifier(&self) -> Result<Classifier, Error> {
        let (pooling, dense, head) = (self.pooling()?, self.dense()?, self.head()?);
        match dense.as_ref().filter(|dense| dense.width() != head.width()) {
            None => Ok(Classifier { pooling, dense, head }),
            Some(dense) => Err(self.bad(format!(
                "its head takes {} values, but `dense.weight` gives {}",
                head.width(),
                dense.width()
            ))),
        }
    }

    /// The layer before the head, where the file has one.
    fn dense(&self) -> Result<Option<Dense>, Error> {
        if !self.file.tensors().contains_key("dense.weight") {
            return Ok(None);
        }
        let (weight, shape) = self.floats("dense.weight")?;
        let &[width, _] = &shape[..] else {
            return Err(self.bad(format!("`dense.weight` has shape {shape:?}; [d_out, d_in] is expected")));
        };
        self.check_head("dense.weight", &shape)?;
        let (bias, _) = self.floats("dense.bias")?;
        if bias.len() != width {
            return Err(self.bad(format!("`dense.bias` has {} values for {width} outputs", bias.len())));
        }
        let given = self.file.metadata().get("activation").map_or("", String::as_str);
        let found = Squash::NAMES.iter().find(|(name, _)| *name == given);
        let Some(&(_, activation)) = found else {
            return Err(self.bad(format!(
                "its metadata says `activation: {given}` for `dense.weight`; tanh or relu is expected"
            )));
        };
        Ok(Some(Dense { weight, bias, activation }))
    }

    /// What the file says beside its tensors.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.file.metadata().get(key).map(String::as_str)
    }

    fn check_head(&self, name: &str, shape: &[usize]) -> Result<(), Error> {
        if shape.contains(&0) {
            return Err(self.bad(format!("`{name}` has shape {shape:?}: there is nothing to predict with")));
        }
        Ok(())
    }

    /// What multiplies the cosines; 1 if the file does not say.
    fn logit_scale(&self) -> Result<f32, Error> {
        let Some(text) = self.file.metadata().get("logit_scale") else { return Ok(1.0) };
        let scale = text.trim().parse().ok().filter(|scale: &f32| scale.is_finite() && *scale > 0.0);
        scale.ok_or_else(|| {
            self.bad(format!("its metadata says `logit_scale: {text}`; a positive number is expected"))
        })
    }

    /// The head must take features of the width that a model gives.
    pub fn check_width(&self, classifier: &Classifier, model: &Path, d: usize) -> Result<(), Error> {
        let (width, model) = (classifier.width(), model.display());
        if width == d {
            return Ok(());
        }
        Err(self.bad(format!("its head takes features of {width} values, but {model} gives {d}")))
    }

    /// A tensor of floats, and its shape.
    pub fn floats(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>), Error> {
        let meta = self.file.meta(name)?;
        Ok((self.read_floats(name, 0..meta.elements())?, meta.shape.clone()))
    }

    fn read_floats(&self, name: &str, range: Range<usize>) -> Result<Vec<f32>, Error> {
        let bytes = self.file.read_values(name, range)?;
        let dtype = self.file.meta(name)?.float().unwrap_or(Dtype::F32);
        Ok(Stored { dtype, bytes }.to_f32())
    }

    fn inputs(&self, split: &str) -> Option<String> {
        let keys = ["pixels", "pixel_values", "input_ids"].map(|kind| key(split, kind));
        keys.into_iter().find(|key| self.file.tensors().contains_key(key))
    }

    fn bad(&self, reason: String) -> Error {
        Error::bad(self.file.path(), reason)
    }

    /// Raw images: `[n, h, w]` grey, `[n, h, w, 3]` or `[n, 3, h, w]` in colour.
    fn pixels(
        &self,
        split: &str,
        range: Range<usize>,
        preprocessor: Option<&Preprocessor>,
    ) -> Result<Samples, Error> {
        let name = key(split, "pixels");
        let Some(preprocessor) = preprocessor else {
            return Err(self.bad(format!("`{name}` holds images, but the model reads text")));
        };
        let shape = self.file.meta(&name)?.shape.clone();
        let (height, width, channels, planar) = match shape[..] {
            [_, h, w] => (h, w, 1, false),
            [_, h, w, 3] => (h, w, 3, false),
            [_, 3, h, w] => (h, w, 3, true),
            _ => {
                return Err(
                    self.bad(format!("`{name}` has shape {shape:?}; [n, h, w] or [n, h, w, 3] is expected"))
                );
            }
        };
        let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let sizes = [side(width), side(height)];
        preprocessor
            .size_of(sizes)
            .map_err(|reason| self.bad(format!("sample {} of `{name}` {reason}", range.start)))?;
        let size = self.elements(&name)?;
        let values = integers::read(&self.file, &name, range.start * size..range.end * size)?;
        if values.iter().any(|&v| v > 255) {
            return Err(self.bad(format!("`{name}` should hold bytes, 0 to 255")));
        }
        let image = |pixels: &[u32]| {
            RgbImage::from_fn(sizes[0], sizes[1], |x, y| {
                let at = y as usize * width + x as usize;
                let channel = |c: usize| match (channels, planar) {
                    (1, _) => pixels[at],
                    (_, true) => pixels[c * height * width + at],
                    (_, false) => pixels[at * 3 + c],
                };
                image::Rgb([0, 1, 2].map(|c| channel(c) as u8))
            })
        };
        let mut ready = preprocessor.no_images();
        values.chunks(size).for_each(|pixels| preprocessor.add(image(pixels), &mut ready));
        Ok(Samples::Images(ready))
    }

    /// Values of one sample, not 0.
    fn elements(&self, name: &str) -> Result<usize, Error> {
        let shape = &self.file.meta(name)?.shape;
        let size = shape.iter().skip(1).try_fold(1, |n: usize, &side| n.checked_mul(side));
        size.filter(|&n| n > 0).ok_or_else(|| {
            self.bad(format!("`{name}` has shape {shape:?}; samples of at least one value are expected"))
        })
    }

    /// Images that are ready.
    fn pixel_values(&self, split: &str, range: Range<usize>) -> Result<Samples, Error> {
        let name = key(split, "pixel_values");
        let shape = self.file.meta(&name)?.shape.clone();
        let &[_, channels, height, width] = &shape[..] else {
            return Err(self.bad(format!("`{name}` has shape {shape:?}; [n, channels, h, w] is expected")));
        };
        let size = self.elements(&name)?;
        let values = self.read_floats(&name, range.start * size..range.end * size)?;
        Ok(Samples::Images(Images { count: range.len(), channels, height, width, values }))
    }

    /// Token ids, where the mask is not 0.
    fn tokens(&self, split: &str, range: Range<usize>) -> Result<Samples, Error> {
        let name = key(split, "input_ids");
        let shape = self.file.meta(&name)?.shape.clone();
        let &[_, length] = &shape[..] else {
            return Err(self.bad(format!("`{name}` has shape {shape:?}; [n, length] is expected")));
        };
        self.elements(&name)?;
        let values = range.start * length..range.end * length;
        let optional = |kind: &str| -> Result<Option<Vec<u32>>, Error> {
            let other = key(split, kind);
            let Ok(meta) = self.file.meta(&other) else { return Ok(None) };
            if meta.shape != shape {
                return Err(
                    self.bad(format!("`{other}` has shape {:?}, but `{name}` has {shape:?}", meta.shape))
                );
            }
            Ok(Some(integers::read(&self.file, &other, values.clone())?))
        };
        let ids = integers::read(&self.file, &name, values.clone())?;
        let (mask, types) = (optional("attention_mask")?, optional("token_type_ids")?);
        let mut texts = Vec::with_capacity(range.len());
        for i in 0..range.len() {
            let seen = |j: &usize| mask.as_ref().is_none_or(|m| m[*j] != 0);
            let own: Vec<usize> = (i * length..(i + 1) * length).filter(seen).collect();
            if own.is_empty() {
                let sample = range.start + i;
                return Err(
                    self.bad(format!("sample {sample} of `{name}` is all padding by its attention mask"))
                );
            }
            let types = types.as_ref().map(|t| own.iter().map(|&j| t[j]).collect()).unwrap_or_default();
            texts.push(Tokens { ids: own.iter().map(|&j| ids[j]).collect(), types });
        }
        Ok(Samples::Text(texts))
    }
}

fn key(split: &str, kind: &str) -> String {
    if split.is_empty() { kind.to_owned() } else { format!("{split}.{kind}") }
}
