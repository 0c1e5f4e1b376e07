//! The average and task arithmetic: weighted sums of the deltas.

use super::election::Election;
use super::elementwise::{Elementwise, Slab, Slabs};
use super::linear::SUM;
use super::table::{Base, Calibration, Description, Kind, NORMALIZE, Strength, WEIGHT};
use super::values::Values;
use crate::backend::{Backend, Result};

/// `task_arithmetic`
pub const METHOD: Description = Description {
    name: "task_arithmetic",
    line: "the weighted sum of what each model differs by",
    formula: "W = b + lambda sum w_i d_i,  d_i = W_i - b",
    source: "Ilharco et al., ICLR 2023 (arXiv 2212.04089)",
    kind: Kind::Elementwise { passes: 0 },
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Lambda,
    parameters: &[WEIGHT, NORMALIZE],
    example: "lambda: 0.4",
};

/// A sum of weights this far below the sum of their sizes is what rounding left of zero.
const ROUNDING: f64 = 1e-9;

/// Coefficients of the (weighted) average, `c_t / sum c`: `dW = sum_t c_t dW_t / sum c`.
///
/// None if the weights sum to 0, or to what rounding left of it.
pub fn average_coefficients(weights: &[f64]) -> Option<Vec<f64>> {
    let total: f64 = weights.iter().sum();
    let size: f64 = weights.iter().map(|w| w.abs()).sum();
    (total.abs() > ROUNDING * size).then(|| weights.iter().map(|w| w / total).collect())
}

/// Coefficients of task arithmetic (Ilharco et al., ICLR 2023), `lambda c_t`: `dW = lambda sum_t c_t dW_t`.
pub fn task_arithmetic_coefficients(weights: &[f64], lambda: f64) -> Vec<f64> {
    weights.iter().map(|w| lambda * w).collect()
}

/// `sum += coefficient * delta`, any shape: one expert at a time, so that no more than one is in memory.
pub fn accumulate<B: Backend>(
    backend: &B,
    sum: &mut B::Tensor,
    coefficient: f64,
    delta: &B::Tensor,
) -> Result<()> {
    backend.axpby(coefficient as f32, delta, 1.0, sum)
}

/// The weighted sum.
pub struct TaskArithmetic(Election);

impl Elementwise for TaskArithmetic {
    type Learned = ();

    fn new(values: &Values) -> std::result::Result<Self, String> {
        if values.is_on("normalize") && average_coefficients(&values.of_models("weight")).is_none() {
            return Err(SUM.to_owned());
        }
        Ok(TaskArithmetic(Election::new(values, false)))
    }

    async fn learn<B: Backend, S: Slabs<B>>(&self, _: &B, _: &mut S) -> std::result::Result<(), S::Error> {
        Ok(())
    }

    async fn apply<B: Backend>(&self, backend: &B, (): &(), slab: Slab<B::Tensor>) -> Result<B::Tensor> {
        self.0.of(backend, &slab.deltas)
    }
}
