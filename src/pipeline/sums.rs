//! The deltas of the second half: kept from the first, or merged on the spot.

use super::assemble::Deltas;
use super::reader::{Reader, Request};
use super::slabs::Merger;
use super::store::{Found, Store};
use super::weights::{BaseValues, base_request};
use super::{Error, Job};
use crate::backend::{Backend, Shape};
use crate::plan::SUM_CHUNK;
use std::ops::Range;

/// Deltas of a running merge.
pub(super) struct Merged<'a, B> {
    job: &'a Job<'a, B>,
    /// Where decomposed layers are, if there are any.
    store: Option<&'a Store>,
    merger: Merger<'a, B>,
}

impl<'a, B: Backend> Merged<'a, B> {
    /// Those in a store, and the others of a job.
    pub fn new(job: &'a Job<'a, B>, store: Option<&'a Store>) -> Self {
        Merged { job, store, merger: Merger::new(job) }
    }
}

impl<B: Backend> Deltas<B> for Merged<'_, B> {
    fn chunk(&self, tensor: &str) -> usize {
        match self.store.is_some_and(|store| store.has(tensor)) {
            true => SUM_CHUNK,
            false => self.merger.size(tensor),
        }
    }

    fn requests(&self, tensor: &str, range: Range<usize>) -> Vec<Request> {
        let base = || base_request(&self.job.family.base, tensor, range.clone());
        match self.store.and_then(|store| store.find(tensor, range.clone())) {
            None => self.merger.requests(tensor, range),
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
            return self.merger.merge(reader, tensor, range, base).await;
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
