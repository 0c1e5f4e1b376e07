//! Weights onto the device: bases, experts, and their difference.

use super::Error;
use super::members::Member;
use super::reader::{Reader, Request, Stored};
use crate::backend::{self, Backend, Shape, Tensor};
use crate::checkpoint::{self, Checkpoint};
use crate::plan::{Expert, Family, Layer};
use std::ops::Range;
use std::rc::Rc;

/// Some values of the base: on the device, and as they are stored.
pub(super) struct BaseValues<T> {
    pub values: Rc<T>,
    stored: Stored,
}

/// The values `range` of a tensor of the base as one row.
pub(super) fn base_row<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    base: &Checkpoint,
    tensor: &str,
    range: Range<usize>,
) -> Result<BaseValues<B::Tensor>, Error> {
    let shape = Shape::matrix(1, range.len());
    base_values(backend, reader, base, tensor, range, shape)
}

fn base_values<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    base: &Checkpoint,
    tensor: &str,
    range: Range<usize>,
    shape: Shape,
) -> Result<BaseValues<B::Tensor>, Error> {
    let stored = reader.base(base.values(tensor, range)?)?;
    let values = backend.unpack(shape, stored.dtype(), &stored).map_err(Error::device(tensor))?;
    Ok(BaseValues { values: Rc::new(values), stored })
}

/// What [`base_row`] and then [`delta_rows`] will read.
pub(super) fn row_requests(family: &Family, tensor: &str, range: Range<usize>) -> Vec<Request> {
    let experts = family.experts.iter().flat_map(|expert| expert_requests(expert, tensor, range.clone()));
    base_request(&family.base, tensor, range.clone()).into_iter().chain(experts).collect()
}

/// What is read of the base. An error is told when it is.
pub(super) fn base_request(base: &Checkpoint, tensor: &str, range: Range<usize>) -> Option<Request> {
    base.values(tensor, range).ok().map(Request::base)
}

/// What is read of an expert: values, and factors.
fn expert_requests(expert: &Expert, tensor: &str, range: Range<usize>) -> Vec<Request> {
    let factors = expert.adapter.as_ref().and_then(|adapter| adapter.extents(tensor, &range).ok());
    let values = expert.values_of(tensor).and_then(|file| file.values(tensor, range).ok());
    let values = values.map(|extent| Request::expert(extent, expert.is_delta));
    values.into_iter().chain(factors.into_iter().flatten().map(Request::other)).collect()
}

/// `dW_t` of a part of a tensor, as one row; none where the expert lacks the tensor.
pub(super) fn delta_row<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    (task, expert): (usize, &Expert),
    tensor: &str,
    range: Range<usize>,
    base: &BaseValues<B::Tensor>,
) -> Result<Option<B::Tensor>, Error> {
    let shape = Shape::matrix(1, range.len());
    delta(backend, reader, (task, expert), tensor, range, shape, base)
}

/// `dW_t` of a part of a tensor of all experts, `T x 1 x n`: zeros where an expert lacks the tensor.
pub(super) fn delta_rows<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    experts: &[Expert],
    tensor: &str,
    range: Range<usize>,
    base: &BaseValues<B::Tensor>,
) -> Result<B::Tensor, Error> {
    let device = || Error::device(tensor);
    if experts.iter().all(|e| !e.is_delta && e.adapter.is_none() && e.weights.get(tensor).is_some()) {
        let stored = |t: usize| -> Result<_, Troubled> {
            let extent = experts[t].weights.values(tensor, range.clone())?;
            let stored = reader.expert(extent, false, t, &base.stored)?;
            Ok((stored.dtype(), stored))
        };
        let deltas = backend.differences(&base.values, experts.len(), stored);
        return deltas.map_err(|troubled| match troubled {
            Troubled::File(error) => error.into(),
            Troubled::Device(error) => device()(error),
        });
    }
    let mut deltas = backend.zeros(Shape::new(experts.len(), 1, range.len())).map_err(device())?;
    for (t, expert) in experts.iter().enumerate() {
        let delta = delta_row(backend, reader, (t, expert), tensor, range.clone(), base)?;
        let Some(delta) = delta else { continue };
        let extent = [1, 1, range.len()];
        backend.copy_block(&delta, [0, 0, 0], &mut deltas, [t, 0, 0], extent).map_err(device())?;
    }
    Ok(deltas)
}

/// What goes wrong while differences are formed.
enum Troubled {
    File(checkpoint::Error),
    Device(backend::Error),
}

impl From<checkpoint::Error> for Troubled {
    fn from(error: checkpoint::Error) -> Troubled {
        Troubled::File(error)
    }
}

impl From<backend::Error> for Troubled {
    fn from(error: backend::Error) -> Troubled {
        Troubled::Device(error)
    }
}

/// The difference of an expert's values, and what its adapter adds; none where it has neither: a task vector that leaves the
/// tensor alone, a layer without factors, or a head of the base's task.
fn delta<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    (task, expert): (usize, &Expert),
    tensor: &str,
    range: Range<usize>,
    shape: Shape,
    base: &BaseValues<B::Tensor>,
) -> Result<Option<B::Tensor>, Error> {
    let of_values = delta_of_values(backend, reader, (task, expert), tensor, range.clone(), shape, base)?;
    let of_factors = delta_of_factors(backend, reader, expert, tensor, range, shape)?;
    match (of_values, of_factors) {
        (Some(mut sum), Some(more)) => {
            backend.axpby(1.0, &more, 1.0, &mut sum).map_err(Error::device(tensor))?;
            Ok(Some(sum))
        }
        (one, None) | (None, one) => Ok(one),
    }
}

/// `W_t - W_0`, or what a task vector holds.
fn delta_of_values<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    (task, expert): (usize, &Expert),
    tensor: &str,
    range: Range<usize>,
    shape: Shape,
    base: &BaseValues<B::Tensor>,
) -> Result<Option<B::Tensor>, Error> {
    let Some(file) = expert.values_of(tensor) else { return Ok(None) };
    let device = || Error::device(tensor);
    let stored = reader.expert(file.values(tensor, range)?, expert.is_delta, task, &base.stored)?;
    let mut values = backend.unpack(shape, stored.dtype(), &stored).map_err(device())?;
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

/// `s B A`
fn delta_of_factors<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    expert: &Expert,
    tensor: &str,
    range: Range<usize>,
    shape: Shape,
) -> Result<Option<B::Tensor>, Error> {
    let Some(adapter) = expert.adapter.as_ref().filter(|adapter| adapter.has_factors(tensor)) else {
        return Ok(None);
    };
    let extents = adapter.extents(tensor, &range)?.into_iter();
    let stored = extents.map(|extent| reader.other(extent)).collect::<Result<Vec<_>, _>>()?;
    let factors: Vec<_> = stored.iter().map(|stored| (stored.dtype(), &stored[..])).collect();
    let difference = adapter.difference(backend, tensor, &range, &factors);
    let shaped = difference.and_then(|row| row.map(|row| row.reshape(shape)).transpose());
    shaped.map_err(Error::device(tensor))
}

/// The weights of a layer in one model, its parts stacked: `1 x d_out x d_in`.
pub(super) fn layer_weights<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    model: &Checkpoint,
    layer: &Layer,
) -> Result<B::Tensor, Error> {
    let device = || Error::device(&layer.name);
    let mut weights = backend.zeros(Shape::matrix(layer.d_out, layer.d_in)).map_err(device())?;
    let mut row = 0;
    for part in &layer.parts {
        let matrix = Shape::matrix(part.rows, part.elements() / part.rows.max(1));
        let mut values = base_values(backend, reader, model, &part.name, 0..part.elements(), matrix)?.values;
        if layer.transposed {
            values = Rc::new(backend.transpose(&values).map_err(device())?);
        }
        let rows = values.shape().rows;
        let extent = [1, rows, layer.d_in];
        backend.copy_block(&values, [0, 0, 0], &mut weights, [0, row, 0], extent).map_err(device())?;
        row += rows;
    }
    Ok(weights)
}

/// `dW_t` of the members, the parts of each layer stacked: `members x d_out x d_in`. One expert's file is in memory at a time,
/// beside the deltas and what is read ahead.
pub(super) fn member_deltas<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    family: &Family,
    members: &[Member<'_>],
) -> Result<B::Tensor, Error> {
    let Some(Member { layer, .. }) = members.first() else {
        return backend.zeros(Shape::new(0, 0, 0)).map_err(Error::device("no layer"));
    };
    let shape = Shape::new(members.len(), layer.d_out, layer.d_in);
    let mut deltas = backend.zeros(shape).map_err(Error::device(&layer.name))?;
    let mut first = 0;
    for of_layer in members.chunk_by(Member::is_of_layer_of) {
        layer_deltas(backend, reader, family, of_layer, (&mut deltas, first))?;
        first += of_layer.len();
    }
    Ok(deltas)
}

/// What [`member_deltas`] will read.
pub(super) fn member_requests(family: &Family, members: &[Member<'_>]) -> Vec<Request> {
    let of_layer = |members: &[Member<'_>]| -> Vec<Request> {
        let parts = members.first().map_or(&[][..], |member| &member.layer.parts);
        let of_part = |part: &crate::plan::Part| {
            let values = 0..part.elements();
            let of_expert =
                |m: &Member<'_>| expert_requests(&family.experts[m.task], &part.name, values.clone());
            let base = base_request(&family.base, &part.name, values.clone());
            base.into_iter().chain(members.iter().flat_map(of_expert)).collect::<Vec<_>>()
        };
        parts.iter().flat_map(of_part).collect()
    };
    members.chunk_by(Member::is_of_layer_of).flat_map(of_layer).collect()
}

/// What [`layer_weights`] will read.
pub(super) fn layer_requests(model: &Checkpoint, layer: &Layer) -> Vec<Request> {
    let parts = layer.parts.iter();
    parts.filter_map(|part| base_request(model, &part.name, 0..part.elements())).collect()
}

/// Those of members of one layer, into `deltas` from the place `first`.
fn layer_deltas<B: Backend>(
    backend: &B,
    reader: &mut Reader<'_>,
    family: &Family,
    members: &[Member<'_>],
    (deltas, first): (&mut B::Tensor, usize),
) -> Result<(), Error> {
    let Some(Member { layer, .. }) = members.first() else { return Ok(()) };
    let device = || Error::device(&layer.name);
    let mut row = 0;
    for part in &layer.parts {
        let matrix = Shape::matrix(part.rows, part.elements() / part.rows.max(1));
        let values = 0..part.elements();
        let base = base_values(backend, reader, &family.base, &part.name, values.clone(), matrix)?;
        for (place, member) in (first..).zip(members) {
            let expert = (member.task, &family.experts[member.task]);
            let part_delta = delta(backend, reader, expert, &part.name, values.clone(), matrix, &base)?;
            if let Some(mut d) = part_delta {
                if layer.transposed {
                    d = backend.transpose(&d).map_err(device())?;
                }
                let extent = [1, d.shape().rows, layer.d_in];
                backend.copy_block(&d, [0, 0, 0], deltas, [place, row, 0], extent).map_err(device())?;
            }
        }
        row += part.rows;
    }
    Ok(())
}
