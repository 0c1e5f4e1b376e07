//! Weights onto the device: bases, experts, and their difference.

use super::Error;
use super::members::Member;
use super::rounding::Rounding;
use crate::backend::{Backend, Dtype, Shape};
use crate::checkpoint::Checkpoint;
use crate::plan::{Expert, Family, Layer};
use std::ops::Range;

/// Values as a file has them.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub dtype: Dtype,
    /// Little-endian.
    pub bytes: Vec<u8>,
}

/// Some values of the base: on the device, and as they are stored.
pub(super) struct BaseValues<T> {
    pub values: T,
    stored: Stored,
}

/// The values `range` of a tensor of the base as one row.
pub(super) fn base_row<B: Backend>(
    backend: &B,
    base: &Checkpoint,
    tensor: &str,
    range: Range<usize>,
) -> Result<BaseValues<B::Tensor>, Error> {
    let shape = Shape::matrix(1, range.len());
    base_values(backend, base, tensor, range, shape)
}

fn base_values<B: Backend>(
    backend: &B,
    base: &Checkpoint,
    tensor: &str,
    range: Range<usize>,
    shape: Shape,
) -> Result<BaseValues<B::Tensor>, Error> {
    let stored = read(base, tensor, range)?;
    let values = backend.unpack(shape, stored.dtype, &stored.bytes).map_err(Error::device(tensor))?;
    Ok(BaseValues { values, stored })
}

fn read(model: &Checkpoint, tensor: &str, range: Range<usize>) -> Result<Stored, Error> {
    let bytes = model.read_values(tensor, range)?;
    let dtype = model.get(tensor).and_then(|meta| meta.float()).unwrap_or(Dtype::F32); // read_values refuses all others
    Ok(Stored { dtype, bytes })
}

/// `dW_t` of a part of a tensor, as one row; none where the expert lacks the tensor.
pub(super) fn delta_row<B: Backend>(
    backend: &B,
    expert: &Expert,
    tensor: &str,
    range: Range<usize>,
    base: &BaseValues<B::Tensor>,
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
    base: &BaseValues<B::Tensor>,
    rounding: &mut Rounding,
) -> Result<Option<B::Tensor>, Error> {
    if expert.weights.get(tensor).is_none() {
        return Ok(None); // a task vector that leaves it alone, or a head of the base's task
    }
    let device = || Error::device(tensor);
    let stored = read(&expert.weights, tensor, range)?;
    rounding.stored(&stored, (!expert.is_delta).then_some(&base.stored));
    let mut values = backend.unpack(shape, stored.dtype, &stored.bytes).map_err(device())?;
    drop(stored);
    if !expert.is_delta {
        backend.axpby(-1.0, &base.values, 1.0, &mut values).map_err(device())?;
    } else if let Some(&factor) = expert.factors.get(tensor) {
        let mut scaled = backend.zeros(shape).map_err(device())?;
        backend.axpby(factor as f32, &values, 0.0, &mut scaled).map_err(device())?;
        values = scaled;
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
        let values = base_values(backend, model, &part.name, 0..part.elements(), matrix)?.values;
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
        let base = base_values(backend, &family.base, &part.name, values.clone(), matrix)?;
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
