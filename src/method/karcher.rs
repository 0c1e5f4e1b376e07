//! The Karcher mean: the point of the sphere with the least squared distance to all models.

use super::elementwise::{Combination, Elementwise, Slab, Slabs};
use super::gram::{self, Gram};
use super::table::{Base, Calibration, Default, Description, Form, Kind, Parameter, Range, Strength, number};
use super::values::{Value, Values};
use crate::backend::{Backend, Result};

/// `karcher`
pub const METHOD: Description = Description {
    name: "karcher",
    line: "the mean of directions on the sphere with the least squared distance to all, times the mean of norms",
    formula: "u_i = x_i/||x_i||; m starts at their normalised mean; at most max_iter steps: the tangent\n\
              T = sum w_i theta_i/sin theta_i (u_i - (u_i.m) m), m <- m cos ||T|| + T sin||T||/||T||; times the mean of all norms",
    source: "Karcher, 1977; as mergekit 0.1.5 has it",
    kind: Kind::Elementwise { passes: 1 },
    models: (1, usize::MAX),
    base: Base::Member,
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[
        Parameter {
            name: "max_iter",
            form: Form::Count,
            default: Default::Is(Value::Number(10.0)),
            of_models: false,
            help: "steps at most",
        },
        number("tol", Range::POSITIVE, 1e-5, "angles and norms below it are none"),
    ],
    example: "max_iter: 10\ntol: 1e-5",
};

/// The Karcher mean of a tensor.
pub struct Karcher {
    steps: usize,
    tol: f64,
}

impl Karcher {
    /// Coefficients of the vectors.
    fn coefficients(&self, gram: &Gram) -> Vec<f64> {
        let n = gram.len();
        let norms: Vec<f64> = (0..n).map(|i| gram.norm(i)).collect();
        let taking_part: Vec<usize> = (0..n).filter(|&i| norms[i] > self.tol).collect();
        if taking_part.is_empty() {
            return vec![0.0; n];
        }
        let share = (taking_part.len() as f64).recip();
        let mut m = vec![0.0; n];
        taking_part.iter().for_each(|&i| m[i] = share / norms[i]);
        let norm = gram.product(&m, &m).max(0.0).sqrt();
        if norm < self.tol {
            // directions that cancel: from the first of them on
            m.fill(0.0);
            m[taking_part[0]] = norms[taking_part[0]].recip();
        } else {
            m.iter_mut().for_each(|c| *c /= norm);
        }
        for _ in 0..self.steps {
            let mut tangent = vec![0.0; n];
            for &i in &taking_part {
                let mut unit = vec![0.0; n];
                unit[i] = norms[i].recip();
                let cosine = gram.product(&unit, &m).clamp(-1.0, 1.0);
                let theta = cosine.acos();
                if theta < self.tol {
                    continue;
                }
                let factor = share * theta / theta.sin();
                tangent.iter_mut().zip(&unit).zip(&m).for_each(|((t, u), m)| *t += factor * (u - cosine * m));
            }
            let length = gram.product(&tangent, &tangent).max(0.0).sqrt();
            if length < self.tol {
                break;
            }
            let (along, across) = (length.cos(), length.sin() / length);
            m.iter_mut().zip(&tangent).for_each(|(m, t)| *m = along * *m + across * t);
            let norm = gram.product(&m, &m).max(0.0).sqrt();
            m.iter_mut().for_each(|c| *c /= norm);
        }
        let length = norms.iter().sum::<f64>() / n as f64;
        m.iter().map(|c| c * length).collect()
    }
}

impl Elementwise for Karcher {
    type Learned = Combination;

    fn new(values: &Values) -> std::result::Result<Self, String> {
        Ok(Karcher { steps: values.number("max_iter") as usize, tol: values.number("tol") })
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Combination, S::Error> {
        let gram = gram::of_tensor(backend, slabs).await?;
        if gram.is_empty() {
            return Ok(Combination::of_deltas(Vec::new()));
        }
        Ok(Combination::of_weights(self.coefficients(&gram.of_weights())))
    }

    async fn apply<B: Backend>(
        &self,
        backend: &B,
        sum: &Combination,
        slab: Slab<B::Tensor>,
    ) -> Result<B::Tensor> {
        sum.apply(backend, &slab)
    }
}
