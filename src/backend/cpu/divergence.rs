//! `row_divergence`: Kullback-Leibler divergences of softmaxes.

use super::{CpuTensor, Shape};
use rayon::prelude::*;

/// Added to both distributions.
const ADDED: f64 = 1e-8;

pub fn row_divergence(base: &CpuTensor, delta: &CpuTensor) -> CpuTensor {
    let cols = base.shape.cols.max(1);
    let rows = base.values.par_chunks(cols).zip(delta.values.par_chunks(cols));
    CpuTensor::new(Shape { cols: 1, ..base.shape }, rows.map(|(b, d)| of_row(b, d) as f32).collect())
}

/// `sum (q + e) h((p - q) / (q + e))` with `h(r) = (1 + r) log(1 + r) - r`, of which no term is negative.
fn of_row(base: &[f32], delta: &[f32]) -> f64 {
    let most = base.iter().fold(f64::MIN, |m, &b| m.max(f64::from(b)));
    let total: f64 = base.iter().map(|&b| (f64::from(b) - most).exp()).sum();
    let q = |b: f32| (f64::from(b) - most).exp() / total;
    let highest = delta.iter().fold(f64::MIN, |m, &d| m.max(f64::from(d)));
    let rise: f64 = base.iter().zip(delta).map(|(&b, &d)| q(b) * (f64::from(d) - highest).exp_m1()).sum();
    let mean = highest + rise.ln_1p();
    let term = |(&b, &d): (&f32, &f32)| {
        let q = q(b);
        let ratio = q * (f64::from(d) - mean).exp_m1() / (q + ADDED);
        (q + ADDED) * ((1.0 + ratio) * ratio.ln_1p() - ratio)
    };
    base.iter().zip(delta).map(term).sum()
}
