//! Weights onto the device: bases, experts, and their difference.

use super::Error;
use super::members::Member;
use super::rounding::Rounding;
use crate::backend::{Backend, Shape};
use crate::checkpoint::Checkpoint;
use crate::plan::{Expert, Family, Layer};
use std::ops::Range;

/// The values `range` of a tensor as one row.
pub(super) fn read_row<B: Backend>(
    backend: &B,
    model: &Checkpoint,
    tensor: &str,
    range: Range<usize>,
    rounding: Option<&mut Rounding>,
) -> Result<B::Tensor, Error> {
    let shape = Shape::matrix(1, range.len());
    read(backend, model, tensor, range, shape, rounding)
}

fn read<B: Backend>(
    backend: &B,
    model: &Checkpoint,
    tensor: &str,
    range: Range<usize>,
    shape: Shape,
    rounding: Option<&mut Rounding>,
) -> Result<B::Tensor, Error> {
    let file = model.file_of(tensor)?;
    let bytes = file.read_values(tensor, range)?;
    let dtype = file.meta(tensor)?.float().unwrap_or(crate::backend::Dtype::F32); // read_values refuses all others
    if let Some(rounding) = rounding {
        rounding.stored(dtype, &bytes);
    }
    backend.unpack(shape, dtype, &bytes).map_err(Error::device(tensor))
}

/// `dW_t` of a part of a tensor, as one row; none where a task vector lacks the tensor.
pub(super) fn delta_row<B: Backend>(
    backend: &B,
    expert: &Expert,
    tensor: &str,
    range: Range<usize>,
    base: &B::Tensor,
    rounding: &mut Rounding,
) -> Result<Option<B::Tensor>, Error> {
    let shape = Shape::matrix(1, range.len());
    delta(backend, expert, tensor, range, shape, base, rounding)
}

fn delta<B: Backend>(
    backend: &B,
    expert: &Expert,
    tensor: &str,
    range: Range<usize>,
    shape: Shape,
    base: &B::Tensor,
    rounding: &mut Rounding,
) -> Result<Option<B::Tensor>, Error> {
    if expert.is_delta && expert.weights.get(tensor).is_none() {
        return Ok(None);
    }
    let mut values = read(backend, &expert.weights, tensor, range, shape, Some(rounding))?;
    if !expert.is_delta {
        backend.axpby(-1.0, base, 1.0, &mut values).map_err(Error::device(tensor))?;
    }
    Ok(Some(values))
}

/// The weights of a layer in one model, its parts stacked: `1 x d_out x d_in`.
pub(super) fn layer_weights<B: Backend>(
    backend: &B,
    model: &Checkpoint,
    layer: &Layer,
) -> Result<B::Tensor, Error> {
    let device = || Error::device(&layer.name);
    let mut weights = backend.zeros(Shape::matrix(layer.d_out, layer.d_in)).map_err(device())?;
    let mut row = 0;
    for part in &layer.parts {
        let matrix = Shape::matrix(part.rows, layer.d_in);
        let values = read(backend, model, &part.name, 0..part.elements(), matrix, None)?;
        let extent = [1, part.rows, layer.d_in];
        backend.copy_block(&values, [0, 0, 0], &mut weights, [0, row, 0], extent).map_err(device())?;
        row += part.rows;
    }
    Ok(weights)
}

/// `dW_t` of the members, the parts of each layer stacked: `members x d_out x d_in`. One expert's file is in memory at a time,
/// beside the deltas.
pub(super) fn member_deltas<B: Backend>(
    backend: &B,
    family: &Family,
    members: &[Member<'_>],
    rounding: &mut [Rounding],
) -> Result<B::Tensor, Error> {
    let Some(Member { layer, .. }) = members.first() else {
        return backend.zeros(Shape::new(0, 0, 0)).map_err(Error::device("no layer"));
    };
    let shape = Shape::new(members.len(), layer.d_out, layer.d_in);
    let mut deltas = backend.zeros(shape).map_err(Error::device(&layer.name))?;
    let mut first = 0;
    for of_layer in members.chunk_by(Member::is_of_layer_of) {
        layer_deltas(backend, family, of_layer, rounding, (&mut deltas, first))?;
        first += of_layer.len();
    }
    Ok(deltas)
}

/// Those of members of one layer, into `deltas` from the place `first`.
fn layer_deltas<B: Backend>(
    backend: &B,
    family: &Family,
    members: &[Member<'_>],
    rounding: &mut [Rounding],
    (deltas, first): (&mut B::Tensor, usize),
) -> Result<(), Error> {
    let Some(Member { layer, .. }) = members.first() else { return Ok(()) };
    let device = || Error::device(&layer.name);
    let mut row = 0;
    for part in &layer.parts {
        let matrix = Shape::matrix(part.rows, layer.d_in);
        let values = 0..part.elements();
        let base = read(backend, &family.base, &part.name, values.clone(), matrix, None)?;
        for (place, member) in (first..).zip(members) {
            let (expert, rounding) = (&family.experts[member.task], &mut rounding[member.task]);
            let part_delta = delta(backend, expert, &part.name, values.clone(), matrix, &base, rounding)?;
            if let Some(d) = part_delta {
                let extent = [1, part.rows, layer.d_in];
                backend.copy_block(&d, [0, 0, 0], deltas, [place, row, 0], extent).map_err(device())?;
            }
        }
        row += part.rows;
    }
    Ok(())
}
