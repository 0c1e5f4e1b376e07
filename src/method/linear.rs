//! The weighted mean of models.

use super::elementwise::{Combination, Elementwise, Slab, Slabs};
use super::table::{Base, Calibration, Description, Kind, NORMALIZE, Parameter, Strength, WEIGHT};
use super::values::{Value, Values};
use super::{arithmetic, table};
use crate::backend::{Backend, Result};

/// `linear`
pub const METHOD: Description = Description {
    name: "linear",
    line: "the weighted mean of the models",
    formula: "W = sum w_i W_i / sum w_i",
    source: "model soups (Wortsman et al., ICML 2022)",
    kind: Kind::Elementwise { passes: 0 },
    models: (1, usize::MAX),
    base: Base::Member,
    calibration: Calibration::Unused,
    strength: Strength::Lambda,
    parameters: &[WEIGHT, Parameter { default: table::Default::Is(Value::Switch(true)), ..NORMALIZE }],
    example: "normalize: true",
};

/// The sum of weights as a difference to the base.
pub struct Linear(Combination);

impl Elementwise for Linear {
    type Learned = ();

    fn new(values: &Values) -> std::result::Result<Self, String> {
        let weights = values.of_models("weight");
        let lambda = values.number("lambda");
        let mut sum = match values.is_on("normalize") {
            true => Combination::of_deltas(
                arithmetic::average_coefficients(&weights).ok_or_else(|| SUM.to_owned())?,
            ),
            false => Combination::of_weights(weights),
        };
        sum.base *= lambda;
        sum.models.iter_mut().for_each(|c| *c *= lambda);
        Ok(Linear(sum))
    }

    async fn learn<B: Backend, S: Slabs<B>>(&self, _: &B, _: &mut S) -> std::result::Result<(), S::Error> {
        Ok(())
    }

    async fn apply<B: Backend>(&self, backend: &B, (): &(), slab: Slab<B::Tensor>) -> Result<B::Tensor> {
        self.0.apply(backend, &slab)
    }
}

/// What is said of weights that cannot be divided by.
pub(super) const SUM: &str = "the weights sum to 0, or to what rounding left of it, so they cannot be divided by their sum; set `normalize: false`";
