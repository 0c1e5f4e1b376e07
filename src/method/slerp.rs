//! Spherical interpolation between the base and one model.

use super::elementwise::{Combination, Elementwise, Slab, Slabs};
use super::gram;
use super::table::{Base, Calibration, Default, Description, Kind, Parameter, Range, Strength, number};
use super::values::Values;
use crate::backend::{Backend, Result};

/// `slerp`
pub const METHOD: Description = Description {
    name: "slerp",
    line: "walks from the base to one other model along the arc between them",
    formula: "each tensor is one vector; theta is the angle between base b and model x;\n\
              W = sin((1-t) theta)/sin theta b + sin(t theta)/sin theta x, linear where |cos theta| > 0.9995",
    source: "Shoemake, SIGGRAPH 1985; as mergekit 0.1.5 has it",
    kind: Kind::Elementwise { passes: 1 },
    models: (1, 1),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[Parameter {
        default: Default::Required,
        ..number("t", Range::ANY, 0.5, "0 is the base, 1 the other model")
    }],
    example: "t:\n  - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}\n  - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}\n  - {value: 0.5}",
};

/// Vectors of this norm or less count as unit vectors.
const SMALLEST: f64 = 1e-8;

/// Beyond this cosine the arc is a line.
const STRAIGHT: f64 = 0.9995;

/// Coefficients of two vectors of given norms and inner product.
pub fn coefficients(t: f64, norms: [f64; 2], product: f64) -> [f64; 2] {
    let [a, b] = norms.map(|norm| if norm > SMALLEST { norm } else { 1.0 });
    let cosine = (product / (a * b)).clamp(-1.0, 1.0);
    if cosine.abs() > STRAIGHT {
        return [1.0 - t, t];
    }
    let theta = cosine.acos();
    [((1.0 - t) * theta).sin() / theta.sin(), (t * theta).sin() / theta.sin()]
}

/// SLERP of a tensor.
pub struct Slerp {
    t: f64,
}

impl Elementwise for Slerp {
    type Learned = Combination;

    fn new(values: &Values) -> std::result::Result<Self, String> {
        Ok(Slerp { t: values.number("t") })
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Combination, S::Error> {
        let gram = gram::of_tensor(backend, slabs).await?;
        if gram.is_empty() {
            return Ok(Combination::of_deltas(vec![self.t]));
        }
        // the other model is b + d
        let product = gram.at(0, 0) + gram.at(0, 1);
        let norm = gram.of_weights().norm(0);
        let [of_base, of_model] = coefficients(self.t, [gram.norm(0), norm], product);
        Ok(Combination { base: of_base + of_model - 1.0, models: vec![of_model] })
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
