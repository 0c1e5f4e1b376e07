//! The merged model before it is written, as a source of weights: the base, and what has been put aside of deltas.

use super::store::{Found, Store};
use super::{Error, Job};
use crate::backend::Dtype;
use crate::backend::layers::Layers;
use crate::data::{self, ModelSource};
use crate::model::{Config, Model, Stored, Weights, WeightsError};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

/// The merged model at one alpha.
pub(super) struct Candidate<'a> {
    pub base: &'a ModelSource,
    pub deltas: &'a Store,
    /// What multiplies each tensor's delta: a factor, and whether alpha does too.
    pub factors: HashMap<&'a str, (f64, bool)>,
    pub alpha: f64,
}

impl<'a> Candidate<'a> {
    /// The model as far as it is merged, with alpha 1; the base where it is not.
    pub fn so_far<B>(job: &Job<'a, B>, base: &'a ModelSource, deltas: &'a Store) -> Candidate<'a> {
        let parts = job.plan.layers.iter().flat_map(|layer| &layer.parts);
        let factors = parts.map(|part| (part.name.as_str(), (1.0, true))).collect();
        Candidate { base, deltas, factors, alpha: 1.0 }
    }

    /// It, ready to run.
    pub fn model<'c, B: Layers>(&'c self, backend: &'c B) -> Result<Model<'c, B>, Error> {
        let model = Model::new(backend, Config::new(self.base.config()), self);
        Ok(model.map_err(data::Error::model(self.base.path()))?)
    }
}

impl Weights for Candidate<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.shape(name)
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Stored, WeightsError> {
        let stored = self.base.read(name, range.clone())?;
        let (Some(&(beta, scaled)), Some(deltas)) = (self.factors.get(name), self.deltas.find(name, range))
        else {
            return Ok(stored);
        };
        let factor = (beta * if scaled { self.alpha } else { 1.0 }) as f32;
        let mut sum = stored.to_f32();
        let deltas = match deltas? {
            Found::InMemory(values) => values,
            Found::OnDisk(extent) => Cow::Owned(bytemuck::pod_collect_to_vec(&extent.read()?)),
        };
        sum.iter_mut().zip(&*deltas).for_each(|(w, d)| *w += factor * d);
        Ok(Stored { dtype: Dtype::F32, bytes: bytemuck::cast_slice(&sum).to_vec() })
    }
}
