//! NearSwap: the other model where it is near the base.

use super::elementwise::{Elementwise, Slab, Slabs};
use super::table::{Base, Calibration, Default, Description, Kind, Parameter, Range, Strength, number};
use super::values::Values;
use crate::backend::{Across, Backend, Result};

/// `nearswap`
pub const METHOD: Description = Description {
    name: "nearswap",
    line: "takes the other model where it is near the base, and less of it the farther it is away",
    formula: "s = clamp(t/max(|b - x|, 1e-6), 0, 1); W = s x + (1-s) b",
    source: "as mergekit 0.1.5 has it",
    kind: Kind::Elementwise { passes: 0 },
    models: (1, 1),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[Parameter {
        default: Default::Required,
        ..number("t", Range::NOT_NEGATIVE, 0.0, "distance up to which the other model is taken whole")
    }],
    example: "t: 0.001",
};

/// NearSwap of a tensor.
pub struct NearSwap {
    t: f64,
}

impl Elementwise for NearSwap {
    type Learned = ();

    fn new(values: &Values) -> std::result::Result<Self, String> {
        Ok(NearSwap { t: values.number("t") })
    }

    async fn learn<B: Backend, S: Slabs<B>>(&self, _: &B, _: &mut S) -> std::result::Result<(), S::Error> {
        Ok(())
    }

    async fn apply<B: Backend>(&self, backend: &B, (): &(), slab: Slab<B::Tensor>) -> Result<B::Tensor> {
        backend.across(&slab.deltas, Across::Approach(self.t as f32))
    }
}
