//! Calibration onto the device.

use super::Error;
use crate::backend::{Backend, Shape, Tensor};
use crate::calibration::{Calibration, Captured, Entry, Statistic, Values};
use crate::method::esd::Inputs;
use crate::plan::{Expert, Family, Layer};
use std::ops::Range;

/// Whether what is known of a layer's input in an expert is its tokens or their Gram matrix, and how many tokens; none
/// without calibration.
pub(super) fn statistic(expert: &Expert, captured: &[Captured], layer: &Layer) -> Option<(Statistic, usize)> {
    let source = Source::of(expert, captured, layer)?;
    Some((source.statistic(), source.tokens()))
}

/// The inputs of a layer in the experts `tasks`, whose calibration is all of one kind.
pub(super) fn layer_inputs<B: Backend>(
    backend: &B,
    family: &Family,
    captured: &[Vec<Captured>],
    layer: &Layer,
    tasks: Range<usize>,
) -> Result<Inputs<B::Tensor>, Error> {
    let experts = family.experts[tasks.clone()].iter().zip(&captured[tasks]);
    let sources: Vec<Source> = experts.filter_map(|(e, captured)| Source::of(e, captured, layer)).collect();
    let tokens: Vec<usize> = sources.iter().map(Source::tokens).collect();
    Ok(match sources.first().map(Source::statistic) {
        None => Inputs::DataFree,
        Some(Statistic::Input) => {
            Inputs::Activations { x: activations(backend, layer, &sources, &tokens)?, tokens }
        }
        Some(Statistic::Gram) => Inputs::Gram { gram: grams(backend, layer, &sources)?, tokens },
    })
}

/// What is known of a layer's inputs in one expert.
enum Source<'a> {
    /// A file has them.
    File { file: &'a Calibration, weight: &'a str, statistic: Statistic },
    /// They were captured just now.
    Captured(&'a Entry),
}

impl<'a> Source<'a> {
    fn of(expert: &'a Expert, captured: &'a [Captured], layer: &'a Layer) -> Option<Source<'a>> {
        if let Some(file) = &expert.calibration {
            let (weight, statistic) = layer.parts.iter().find_map(|part| file.source_of(&part.name))?;
            return Some(Source::File { file, weight, statistic });
        }
        let found = captured.iter().find(|c| layer.parts.iter().any(|part| c.is_of(&part.name)));
        found.map(|c| Source::Captured(&c.entry))
    }

    fn statistic(&self) -> Statistic {
        match self {
            Source::File { statistic, .. } => *statistic,
            Source::Captured(entry) if entry.input.is_some() => Statistic::Input,
            Source::Captured(_) => Statistic::Gram,
        }
    }

    fn tokens(&self) -> usize {
        match self {
            Source::File { file, weight, .. } => file.tokens(weight),
            Source::Captured(entry) => entry.tokens,
        }
    }

    fn upload<B: Backend>(&self, backend: &B, layer: &Layer) -> Result<B::Tensor, Error> {
        let device = Error::device(&layer.name);
        match self {
            Source::File { file, weight, statistic } => {
                let Values { rows, cols, dtype, bytes } = file.read(weight, *statistic)?;
                backend.unpack(Shape::matrix(rows, cols), dtype, &bytes).map_err(device)
            }
            Source::Captured(entry) => {
                let values = entry.input.as_ref().or(entry.gram.as_ref()).map_or(&[][..], |v| v);
                let shape = Shape::matrix(values.len() / entry.d_in.max(1), entry.d_in);
                backend.upload(shape, values).map_err(device)
            }
        }
    }
}

/// `X_t`, `T x n x d_in`; fewer tokens are padded with zero rows, which add nothing to any product.
fn activations<B: Backend>(
    backend: &B,
    layer: &Layer,
    sources: &[Source],
    tokens: &[usize],
) -> Result<B::Tensor, Error> {
    let device = || Error::device(&layer.name);
    let longest = tokens.iter().copied().max().unwrap_or(0);
    let mut x = backend.zeros(Shape::new(sources.len(), longest, layer.d_in)).map_err(device())?;
    for (t, source) in sources.iter().enumerate() {
        let values = source.upload(backend, layer)?;
        let extent = [1, values.shape().rows, layer.d_in];
        backend.copy_block(&values, [0, 0, 0], &mut x, [t, 0, 0], extent).map_err(device())?;
    }
    Ok(x)
}

/// `G_t = X_t^T X_t`, `T x d_in x d_in`.
fn grams<B: Backend>(backend: &B, layer: &Layer, sources: &[Source]) -> Result<B::Tensor, Error> {
    let device = || Error::device(&layer.name);
    let d = layer.d_in;
    let mut grams = backend.zeros(Shape::new(sources.len(), d, d)).map_err(device())?;
    for (t, source) in sources.iter().enumerate() {
        let gram = source.upload(backend, layer)?;
        backend.copy_block(&gram, [0, 0, 0], &mut grams, [t, 0, 0], [1, d, d]).map_err(device())?;
    }
    Ok(grams)
}
