//! The last step of methods that weigh differences: a plain weighted sum, or TIES' election of signs.

use super::elementwise::{narrow, normalizer, scaled};
use super::values::Values;
use crate::backend::{Across, Backend, Cut, Divide, Result};

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
        backend.across(deltas, Across::Weigh(&self.factors()))
    }

    /// The same of what cuts leave of the differences.
    pub fn of_trimmed<B: Backend>(
        &self,
        backend: &B,
        deltas: B::Tensor,
        cuts: &[(Cut, Cut)],
    ) -> Result<B::Tensor> {
        if self.elects {
            let factors = narrow(&[&self.weights[..], &self.weights].concat());
            let divide = if self.normalize { Divide::UnlessZero } else { Divide::Never };
            let sum = backend.across_trimmed(deltas, cuts, Across::Elect { factors: &factors, divide })?;
            return scaled(backend, sum, self.lambda);
        }
        backend.across_trimmed(deltas, cuts, Across::Weigh(&self.factors()))
    }

    /// Of a plain sum.
    fn factors(&self) -> Vec<f32> {
        let factor = self.lambda * if self.normalize { normalizer(&self.weights) } else { 1.0 };
        self.weights.iter().map(|w| (factor * w) as f32).collect()
    }
}
