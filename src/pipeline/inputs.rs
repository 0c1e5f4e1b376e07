//! Calibration onto the device.

use super::Error;
use super::members::Member;
use super::reader::{Reader, Request};
use crate::backend::{Backend, Shape, Tensor};
use crate::calibration::{self, Calibration, Captured, Entry, Statistic};
use crate::method::esd::Inputs;
use crate::plan::{Expert, Family, Layer};

/// Whether what is known of a layer's input in an expert is its tokens or their Gram matrix, and how many tokens; none
/// without calibration.
pub(super) fn statistic(expert: &Expert, captured: &[Captured], layer: &Layer) -> Option<(Statistic, usize)> {
    let source = Source::of(expert, captured, layer)?;
    Some((source.statistic(), source.tokens()))
}

/// The inputs of the members, whose calibration is all of one kind.
pub(super) fn member_inputs<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    family: &Family,
    captured: &[Vec<Captured>],
    members: &[Member<'_>],
) -> Result<Inputs<B::Tensor>, Error> {
    let known = members.iter().filter_map(|&Member { layer, task }| {
        let source = Source::of(&family.experts[task], &captured[task], layer)?;
        Some(Known { layer: &layer.name, source })
    });
    let known: Vec<Known> = known.collect();
    let tokens: Vec<usize> = known.iter().map(|known| known.source.tokens()).collect();
    let d_in = members.first().map_or(0, |m| m.layer.d_in);
    let longest = tokens.iter().copied().max().unwrap_or(0);
    Ok(match known.first().map(|known| known.source.statistic()) {
        None => Inputs::DataFree,
        Some(Statistic::Input) => {
            Inputs::Activations { x: stacked(backend, reader, &known, longest, d_in)?, tokens }
        }
        Some(Statistic::Gram) => Inputs::Gram { gram: stacked(backend, reader, &known, d_in, d_in)?, tokens },
    })
}

/// What [`member_inputs`] will read of calibration files.
pub(super) fn input_requests(family: &Family, members: &[Member<'_>]) -> Vec<Request> {
    let request = |&Member { layer, task }: &Member<'_>| match Source::of(&family.experts[task], &[], layer)?
    {
        Source::File { file, weight, statistic } => {
            let (.., extent) = file.place(weight, statistic).ok()?;
            Some(Request::other(extent))
        }
        Source::Captured(_) => None,
    };
    members.iter().filter_map(request).collect()
}

/// What is known of the inputs of one member, and the layer it is of.
struct Known<'a> {
    layer: &'a str,
    source: Source<'a>,
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

    fn upload<B: Backend>(
        &self,
        backend: &B,
        reader: &mut Reader<'_>,
        layer: &str,
    ) -> Result<B::Tensor, Error> {
        let device = Error::device(layer);
        match self {
            Source::File { file, weight, statistic } => {
                let (rows, cols, dtype, extent) = file.place(weight, *statistic)?;
                let stored = reader.other(extent).map_err(calibration::Error::from)?;
                backend.unpack(Shape::matrix(rows, cols), dtype, &stored).map_err(device)
            }
            Source::Captured(entry) => {
                let values = entry.input.as_ref().or(entry.gram.as_ref()).map_or(&[][..], |v| v);
                let shape = Shape::matrix(values.len() / entry.d_in.max(1), entry.d_in);
                backend.upload(shape, values).map_err(device)
            }
        }
    }
}

/// `X_t` or `G_t` of all members, `members x rows x d_in`; fewer tokens are padded with zero rows, which add nothing to any
/// product.
fn stacked<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    known: &[Known],
    rows: usize,
    d_in: usize,
) -> Result<B::Tensor, Error> {
    let first = known.first().map_or("", |known| known.layer);
    let mut all = backend.zeros(Shape::new(known.len(), rows, d_in)).map_err(Error::device(first))?;
    for (place, Known { layer, source }) in known.iter().enumerate() {
        let values = source.upload(backend, reader, layer)?;
        let extent = [1, values.shape().rows, d_in];
        backend
            .copy_block(&values, [0, 0, 0], &mut all, [place, 0, 0], extent)
            .map_err(Error::device(layer))?;
    }
    Ok(all)
}
