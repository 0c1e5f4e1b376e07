//! The deltas of the second half: read from the spill, or summed on the spot.

use super::assemble::Deltas;
use super::rounding::Rounding;
use super::weights::{BaseValues, delta_row};
use super::{Error, Job};
use crate::backend::{Backend, Dtype, Shape};
use crate::checkpoint::DeltaWriter;
use crate::method::arithmetic;
use std::ops::Range;

/// Deltas of a running merge.
pub(super) struct Merged<'a, B> {
    pub job: &'a Job<'a, B>,
    /// Where decomposed layers are, if there are any.
    pub spill: Option<&'a DeltaWriter>,
    pub rounding: &'a mut [Rounding],
}

impl<B: Backend> Deltas<B> for Merged<'_, B> {
    async fn read(
        &mut self,
        tensor: &str,
        range: Range<usize>,
        base: &BaseValues<B::Tensor>,
    ) -> Result<B::Tensor, Error> {
        if let Some(spill) = self.spill.filter(|spill| spill.contains(tensor)) {
            let bytes = spill.read(tensor, range.clone())?;
            let shape = Shape::matrix(1, range.len());
            return self.job.backend.unpack(shape, Dtype::F32, &bytes).map_err(Error::device(tensor));
        }
        sum(self.job, tensor, range, base, self.rounding).await
    }
}

/// `dW = sum_t c_t dW_t` of the values `range` of a tensor, as one row.
pub(super) async fn sum<B: Backend>(
    job: &Job<'_, B>,
    tensor: &str,
    range: Range<usize>,
    base: &BaseValues<B::Tensor>,
    rounding: &mut [Rounding],
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
        let delta = delta_row(backend, expert, tensor, range.clone(), base, &mut rounding[t])?;
        let Some(delta) = delta else { continue };
        arithmetic::accumulate(backend, &mut total, coefficient, &delta).map_err(device())?;
        let norm = backend.frobenius_norms(&delta).map_err(device())?;
        backend.copy_block(&norm, [0, 0, 0], &mut norms, [t, 0, 0], [1, 1, 1]).map_err(device())?;
    }
    // One wait for all experts.
    let norms = backend.download(&norms).await.map_err(device())?;
    for (rounding, norm) in rounding.iter_mut().zip(norms) {
        rounding.delta(norm.into());
    }
    Ok(total)
}
