//! What elementwise methods do to matrices that are on the device already.

use super::elementwise::{Slab, Slabs};
use super::ranks;
use crate::backend::{Backend, Error, Result, Shape, Tensor};
use std::rc::Rc;

/// Matrices of T tasks as the only slab of a tensor, without a base.
pub(super) struct Held<T>(Slab<T>);

impl<T: Tensor> Held<T> {
    /// Of a batch of matrices, as rows.
    pub fn rows<B: Backend<Tensor = T>>(backend: &B, matrices: T) -> Result<Self> {
        let deltas = ranks::as_rows(matrices)?;
        let base = Rc::new(backend.zeros(Shape::matrix(1, deltas.shape().cols))?);
        Ok(Held(Slab { base, deltas, first: 0 }))
    }

    /// Of a base and the differences of all tasks, as they are or as rows.
    pub fn of(base: T, deltas: T, by_rows: bool) -> Result<Self> {
        let (base, deltas) = match by_rows {
            true => (base, deltas),
            false => (ranks::as_rows(base)?, ranks::as_rows(deltas)?),
        };
        Ok(Held(Slab { base: Rc::new(base), deltas, first: 0 }))
    }

    pub fn into_slab(self) -> Slab<T> {
        self.0
    }
}

impl<B: Backend> Slabs<B> for Held<B::Tensor> {
    type Error = Error;

    fn count(&self) -> usize {
        1
    }

    fn elements(&self) -> usize {
        self.0.base.shape().len()
    }

    async fn slab(&mut self, _: usize) -> Result<&Slab<B::Tensor>> {
        Ok(&self.0)
    }
}
