//! Multi-SLERP: a barycentre on the sphere, of two models or more.

use super::elementwise::{Combination, Elementwise, Slab, Slabs};
use super::gram::{self, Gram};
use super::table::{Base, Calibration, Description, Kind, Range, Strength, WEIGHT, number, switch};
use super::values::Values;
use crate::backend::{Backend, Result};

/// `multislerp`
pub const METHOD: Description = Description {
    name: "multislerp",
    line: "the weighted mean of directions on the sphere, times the weighted mean of norms",
    formula: "u_i = x_i/(||x_i|| + eps); m = sum w_i u_i, normalised; v = sum w_i (u_i - (u_i.m) m), r = ||v|| + eps;\n\
              (m cos r + v sin(r)/r) sum w_i ||x_i||, of differences if there is a base. Opposite directions are an error,\n\
              but of two models, which are interpolated then",
    source: "as mergekit 0.1.5 has it",
    kind: Kind::Elementwise { passes: 1 },
    models: (2, usize::MAX),
    base: Base::Optional,
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[
        WEIGHT,
        switch("normalize_weights", true, "divide weights by their sum"),
        number("eps", Range::POSITIVE, 1e-8, "what norms are kept away from zero by"),
    ],
    example: "normalize_weights: true",
};

/// Multi-SLERP of a tensor.
pub struct MultiSlerp {
    weights: Vec<f64>,
    eps: f64,
    has_base: bool,
}

impl MultiSlerp {
    /// Coefficients of the vectors; none where their directions cancel.
    fn coefficients(&self, gram: &Gram) -> Option<Vec<f64>> {
        let n = self.weights.len();
        let norms: Vec<f64> = (0..n).map(|i| gram.norm(i)).collect();
        let lengths: f64 = norms.iter().zip(&self.weights).map(|(norm, w)| norm * w).sum();
        if lengths == 0.0 && norms.iter().all(|&norm| norm == 0.0) {
            return Some(vec![0.0; n]);
        }
        let unit: Vec<f64> = norms.iter().map(|norm| (norm + self.eps).recip()).collect();
        let mut m: Vec<f64> = unit.iter().zip(&self.weights).map(|(unit, w)| unit * w).collect();
        let norm = gram.product(&m, &m).max(0.0).sqrt();
        if norm < self.eps {
            return (n == 2).then(|| self.weights.clone());
        }
        m.iter_mut().for_each(|c| *c /= norm);
        let along = |i: usize| {
            let own: Vec<f64> = (0..n).map(|j| if j == i { unit[i] } else { 0.0 }).collect();
            gram.product(&own, &m)
        };
        let inside: f64 = (0..n).map(|i| self.weights[i] * along(i)).sum();
        let v: Vec<f64> = (0..n).map(|i| self.weights[i] * unit[i] - inside * m[i]).collect();
        let r = gram.product(&v, &v).max(0.0).sqrt() + self.eps;
        Some((0..n).map(|i| lengths * (m[i] * r.cos() + v[i] * r.sin() / r)).collect())
    }
}

impl Elementwise for MultiSlerp {
    type Learned = Option<Combination>;

    fn new(values: &Values) -> std::result::Result<Self, String> {
        let mut weights = values.of_models("weight");
        if values.is_on("normalize_weights") {
            weights = super::arithmetic::average_coefficients(&weights).ok_or(
                "the weights sum to 0, so they cannot be normalised; set `normalize_weights: false`",
            )?;
        }
        Ok(MultiSlerp { weights, eps: values.number("eps"), has_base: values.has_base })
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Option<Combination>, S::Error> {
        let gram = gram::of_tensor(backend, slabs).await?;
        if gram.is_empty() {
            return Ok(Some(Combination::of_deltas(self.weights.clone())));
        }
        let gram = if self.has_base { gram.of_deltas() } else { gram.of_weights() };
        let sum = if self.has_base { Combination::of_deltas } else { Combination::of_weights };
        Ok(self.coefficients(&gram).map(sum))
    }

    async fn apply<B: Backend>(
        &self,
        backend: &B,
        sum: &Option<Combination>,
        slab: Slab<B::Tensor>,
    ) -> Result<B::Tensor> {
        match sum {
            Some(sum) => sum.apply(backend, &slab),
            None => Err(crate::backend::Error::Undefined(
                "the directions of the models cancel each other, so that multislerp has no mean direction; give other weights",
            )),
        }
    }
}
