//! The average and task arithmetic: weighted sums of the deltas.

use crate::backend::{Backend, Result};

/// Coefficients of the (weighted) average, `c_t / sum c`: `dW = sum_t c_t dW_t / sum c`.
///
/// None if the weights sum to 0.
pub fn average_coefficients(weights: &[f64]) -> Option<Vec<f64>> {
    let total: f64 = weights.iter().sum();
    (total != 0.0).then(|| weights.iter().map(|w| w / total).collect())
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
