//! The deltas of the second half: kept from the first, or summed on the spot.

use super::assemble::Deltas;
use super::reader::{Reader, Request};
use super::store::{Found, Store};
use super::weights::{BaseValues, base_request, delta_row, row_requests};
use super::{Error, Job};
use crate::backend::{Backend, Shape};
use crate::method::arithmetic;
use std::ops::Range;

/// Deltas of a running merge.
pub(super) struct Merged<'a, B> {
    pub job: &'a Job<'a, B>,
    /// Where decomposed layers are, if there are any.
    pub store: Option<&'a Store>,
}

impl<B: Backend> Deltas<B> for Merged<'_, B> {
    fn requests(&self, tensor: &str, range: Range<usize>) -> Vec<Request> {
        let base = || base_request(&self.job.family.base, tensor, range.clone());
        match self.store.and_then(|store| store.find(tensor, range.clone())) {
            None => row_requests(self.job.family, tensor, range),
            Some(Ok(Found::OnDisk(extent))) => base().into_iter().chain([Request::other(extent)]).collect(),
            Some(_) => base().into_iter().collect(),
        }
    }

    async fn read(
        &self,
        reader: &mut Reader<'_>,
        tensor: &str,
        range: Range<usize>,
        base: &BaseValues<B::Tensor>,
    ) -> Result<B::Tensor, Error> {
        let (backend, shape) = (self.job.backend, Shape::matrix(1, range.len()));
        let Some(found) = self.store.and_then(|store| store.find(tensor, range.clone())) else {
            return sum(self.job, reader, tensor, range, base).await;
        };
        let values = match found? {
            Found::InMemory(values) => backend.upload(shape, &values),
            Found::OnDisk(extent) => {
                let stored = reader.other(extent)?;
                backend.unpack(shape, stored.dtype(), &stored)
            }
        };
        values.map_err(Error::device(tensor))
    }
}

/// `dW = sum_t c_t dW_t` of the values `range` of a tensor, as one row.
pub(super) async fn sum<B: Backend>(
    job: &Job<'_, B>,
    reader: &mut Reader<'_>,
    tensor: &str,
    range: Range<usize>,
    base: &BaseValues<B::Tensor>,
) -> Result<B::Tensor, Error> {
    let (backend, coefficients) = (job.backend, &job.plan.sum);
    let device = || Error::device(tensor);
    let experts = &job.family.experts;
    let mut total = backend.zeros(Shape::matrix(1, range.len())).map_err(device())?;
    let mut norms = backend.zeros(Shape::new(experts.len(), 1, 1)).map_err(device())?;
    if coefficients.base != 0.0 {
        arithmetic::accumulate(backend, &mut total, coefficients.base, &base.values).map_err(device())?;
    }
    for (t, (expert, &coefficient)) in experts.iter().zip(&coefficients.experts).enumerate() {
        let delta = delta_row(backend, reader, (t, expert), tensor, range.clone(), base)?;
        let Some(delta) = delta else { continue };
        arithmetic::accumulate(backend, &mut total, coefficient, &delta).map_err(device())?;
        let norm = backend.frobenius_norms(&delta).map_err(device())?;
        backend.copy_block(&norm, [0, 0, 0], &mut norms, [t, 0, 0], [1, 1, 1]).map_err(device())?;
    }
    // One wait for all experts.
    let norms = backend.download(&norms).await.map_err(device())?;
    for (rounding, norm) in reader.rounding.iter_mut().zip(norms) {
        rounding.delta(norm.into());
    }
    Ok(total)
}
