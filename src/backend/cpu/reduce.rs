//! Norms and inner products, accumulated in f64.

use super::{CpuTensor, Shape};
use rayon::prelude::*;

pub fn row_norms(x: &CpuTensor) -> CpuTensor {
    let cols = x.shape.cols;
    let values = if cols == 0 {
        vec![0.0; x.shape.batch * x.shape.rows]
    } else {
        x.values.par_chunks(cols).with_min_len(64).map(|row| sum_of_squares(row).sqrt() as f32).collect()
    };
    CpuTensor::new(Shape { cols: 1, ..x.shape }, values)
}

pub fn column_norms(x: &CpuTensor) -> CpuTensor {
    let cols = x.shape.cols;
    let mut values = Vec::with_capacity(x.shape.batch * cols);
    for b in 0..x.shape.batch {
        let mut sums = vec![0f64; cols];
        if cols > 0 {
            for row in x.matrix(b).chunks_exact(cols) {
                sums.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v) * f64::from(v));
            }
        }
        values.extend(sums.iter().map(|s| s.sqrt() as f32));
    }
    CpuTensor::new(Shape { rows: 1, ..x.shape }, values)
}

pub fn frobenius_norms(x: &CpuTensor) -> CpuTensor {
    let values = (0..x.shape.batch).map(|b| sum_of_squares(x.matrix(b)).sqrt() as f32).collect();
    CpuTensor::new(Shape::new(x.shape.batch, 1, 1), values)
}

pub fn inner_products(x: &CpuTensor, y: &CpuTensor) -> CpuTensor {
    let dot = |b| {
        x.matrix(b).iter().zip(y.matrix(b)).map(|(&u, &v)| f64::from(u) * f64::from(v)).sum::<f64>() as f32
    };
    CpuTensor::new(Shape::new(x.shape.batch, 1, 1), (0..x.shape.batch).map(dot).collect())
}

/// In f64, so that no f32 overflows or underflows on the way.
fn sum_of_squares(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}
