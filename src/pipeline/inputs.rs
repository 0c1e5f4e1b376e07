//! Calibration onto the device.

use super::Error;
use crate::backend::{Backend, Shape, Tensor};
use crate::calibration::{Calibration, Statistic, Values};
use crate::method::esd::Inputs;
use crate::plan::{Expert, Family, Layer};
use std::ops::Range;

/// Whether an expert's calibration has the tokens of a layer's input or their Gram matrix, and how many tokens; none
/// without calibration.
pub(super) fn statistic(expert: &Expert, layer: &Layer) -> Option<(Statistic, usize)> {
    let source = Source::of(expert.calibration.as_ref()?, layer)?;
    Some((source.statistic, source.file.tokens(source.weight)))
}

/// The inputs of a layer in the experts `tasks`, whose calibration is all of one kind.
pub(super) fn layer_inputs<B: Backend>(
    backend: &B,
    family: &Family,
    layer: &Layer,
    tasks: Range<usize>,
) -> Result<Inputs<B::Tensor>, Error> {
    let sources: Vec<Source> =
        family.experts[tasks].iter().filter_map(|e| Source::of(e.calibration.as_ref()?, layer)).collect();
    let tokens: Vec<usize> = sources.iter().map(|s| s.file.tokens(s.weight)).collect();
    Ok(match sources.first().map(|s| s.statistic) {
        None => Inputs::DataFree,
        Some(Statistic::Input) => {
            Inputs::Activations { x: activations(backend, layer, &sources, &tokens)?, tokens }
        }
        Some(Statistic::Gram) => Inputs::Gram { gram: grams(backend, layer, &sources)?, tokens },
    })
}

/// What one expert's file has of a layer's inputs.
struct Source<'a> {
    file: &'a Calibration,
    weight: &'a str,
    statistic: Statistic,
}

impl<'a> Source<'a> {
    fn of(file: &'a Calibration, layer: &'a Layer) -> Option<Source<'a>> {
        let (weight, statistic) = layer.parts.iter().find_map(|part| file.source_of(&part.name))?;
        Some(Source { file, weight, statistic })
    }

    fn upload<B: Backend>(&self, backend: &B, layer: &Layer) -> Result<B::Tensor, Error> {
        let Values { rows, cols, dtype, bytes } = self.file.read(self.weight, self.statistic)?;
        backend.unpack(Shape::matrix(rows, cols), dtype, &bytes).map_err(Error::device(&layer.name))
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
