//! One model as it is, or scaled.

use super::elementwise::{Combination, Elementwise, Slab, Slabs};
use super::table::{Base, Calibration, Description, Kind, Range, Strength, of_models};
use super::values::Values;
use crate::backend::{Backend, Result};

/// `passthrough`
pub const METHOD: Description = Description {
    name: "passthrough",
    line: "one model as it is, scaled if asked; with slices, layers of several models one after another",
    formula: "W = scale x",
    source: "as mergekit 0.1.5 has it",
    kind: Kind::Elementwise { passes: 0 },
    models: (1, 1),
    base: Base::Member,
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[of_models("scale", Range::ANY, 1.0, "factor of the weights")],
    example: "scale:\n  - {filter: down_proj, value: 0.5}\n  - {value: 1.0}",
};

/// One model.
pub struct Passthrough(Combination);

impl Elementwise for Passthrough {
    type Learned = ();

    fn new(values: &Values) -> std::result::Result<Self, String> {
        match values.of_models("scale")[..] {
            [scale] => Ok(Passthrough(Combination::of_weights(vec![scale]))),
            _ => Err("one model is needed".to_owned()),
        }
    }

    async fn learn<B: Backend, S: Slabs<B>>(&self, _: &B, _: &mut S) -> std::result::Result<(), S::Error> {
        Ok(())
    }

    async fn apply<B: Backend>(&self, backend: &B, (): &(), slab: Slab<B::Tensor>) -> Result<B::Tensor> {
        self.0.apply(backend, &slab)
    }
}
