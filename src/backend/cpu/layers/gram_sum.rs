//! `accumulate_gram`: a covariance summed in f64 between two f32 matrices.

use super::CpuTensor;
use crate::host::all_threads;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat};

pub fn accumulate_gram(x: &CpuTensor, high: &mut CpuTensor, low: &mut CpuTensor) {
    let (n, d) = (x.shape.rows, x.shape.cols);
    let mut sum = Mat::from_fn(d, d, |i, j| {
        if i < j { 0.0 } else { f64::from(high.values[i * d + j]) + f64::from(low.values[i * d + j]) }
    });
    let slab = Mat::from_fn(d, n, |j, i| f64::from(x.values[i * d + j]));
    triangular::matmul(
        sum.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Add,
        slab.as_ref(),
        BlockStructure::Rectangular,
        slab.transpose(),
        BlockStructure::Rectangular,
        1.0,
        all_threads(),
    );
    for i in 0..d {
        for j in 0..=i {
            let whole = sum[(i, j)];
            let nearest = whole as f32;
            let rest = (whole - f64::from(nearest)) as f32;
            for at in [i * d + j, j * d + i] {
                high.values[at] = nearest;
                low.values[at] = rest;
            }
        }
    }
}
