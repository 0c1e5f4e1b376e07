//! The last step of methods that weigh differences: a plain weighted sum, or TIES' election of signs.

use super::elementwise::{narrow, normalizer, scaled};
use super::values::Values;
use crate::backend::{Across, Backend, Divide, Result};

/// How trimmed differences become one.
#[derive(Clone, Debug)]
pub struct Election {
    weights: Vec<f64>,
    normalize: bool,
    elects: bool,
    lambda: f64,
}

impl Election {
    /// By the parameters `weight`, `normalize` and `lambda`.
    pub fn new(values: &Values, elects: bool) -> Election {
        Election {
            weights: values.of_models("weight"),
            normalize: values.is_on("normalize"),
            elects,
            lambda: values.number("lambda"),
        }
    }

    /// The merged delta: `lambda sum_t w_t d_t`, over the sum of the weights if it is normalized; of the differences whose sign is
    /// elected, if signs are.
    pub fn of<B: Backend>(&self, backend: &B, deltas: &B::Tensor) -> Result<B::Tensor> {
        if self.elects {
            let factors = narrow(&[&self.weights[..], &self.weights].concat());
            let divide = if self.normalize { Divide::UnlessZero } else { Divide::Never };
            let sum = backend.across(deltas, Across::Elect { factors: &factors, divide })?;
            return scaled(backend, sum, self.lambda);
        }
        let factor = self.lambda * if self.normalize { normalizer(&self.weights) } else { 1.0 };
        let factors: Vec<f32> = self.weights.iter().map(|w| (factor * w) as f32).collect();
        backend.across(deltas, Across::Weigh(&factors))
    }
}
