//! Norms and inner products, accumulated in f64.

use super::parallel::ELEMENTS_PER_TASK;
use super::{CpuTensor, Shape};
use rayon::prelude::*;

pub fn row_norms(x: &CpuTensor) -> CpuTensor {
    for_rows(x, x, f64::sqrt)
}

pub fn row_products(x: &CpuTensor, y: &CpuTensor) -> CpuTensor {
    for_rows(x, y, |sum| sum)
}

fn for_rows(x: &CpuTensor, y: &CpuTensor, f: impl Fn(f64) -> f64 + Sync) -> CpuTensor {
    let cols = x.shape.cols;
    let values = if cols == 0 {
        vec![0.0; x.shape.batch * x.shape.rows]
    } else {
        let rows = x.values.par_chunks(cols).zip(y.values.par_chunks(cols)).with_min_len(64);
        rows.map(|(x, y)| f(sum_of_products(x, y)) as f32).collect()
    };
    CpuTensor::new(Shape { cols: 1, ..x.shape }, values)
}

pub fn column_norms(x: &CpuTensor) -> CpuTensor {
    for_columns(x, x, f64::sqrt)
}

pub fn column_products(x: &CpuTensor, y: &CpuTensor) -> CpuTensor {
    for_columns(x, y, |sum| sum)
}

fn for_columns(x: &CpuTensor, y: &CpuTensor, f: impl Fn(f64) -> f64) -> CpuTensor {
    let cols = x.shape.cols;
    let mut values = Vec::with_capacity(x.shape.batch * cols);
    for b in 0..x.shape.batch {
        let mut sums = vec![0f64; cols];
        if cols > 0 {
            for (x, y) in x.matrix(b).chunks_exact(cols).zip(y.matrix(b).chunks_exact(cols)) {
                sums.iter_mut().zip(x).zip(y).for_each(|((s, &x), &y)| *s += f64::from(x) * f64::from(y));
            }
        }
        values.extend(sums.iter().map(|&s| f(s) as f32));
    }
    CpuTensor::new(Shape { rows: 1, ..x.shape }, values)
}

pub fn frobenius_norms(x: &CpuTensor) -> CpuTensor {
    let values = (0..x.shape.batch).map(|b| in_pieces(x.matrix(b), x.matrix(b)).sqrt() as f32).collect();
    CpuTensor::new(Shape::new(x.shape.batch, 1, 1), values)
}

pub fn inner_products(x: &CpuTensor, y: &CpuTensor) -> CpuTensor {
    let values = (0..x.shape.batch).map(|b| in_pieces(x.matrix(b), y.matrix(b)) as f32).collect();
    CpuTensor::new(Shape::new(x.shape.batch, 1, 1), values)
}

/// [`sum_of_products`] of pieces side by side, added in order.
fn in_pieces(x: &[f32], y: &[f32]) -> f64 {
    let pieces = x.par_chunks(ELEMENTS_PER_TASK).zip(y.par_chunks(ELEMENTS_PER_TASK));
    pieces.map(|(x, y)| sum_of_products(x, y)).collect::<Vec<_>>().into_iter().sum()
}

/// In f64, so that no f32 overflows or underflows on the way; in as many sums as a processor adds at once.
fn sum_of_products(x: &[f32], y: &[f32]) -> f64 {
    const LANES: usize = 32;
    let mut sums = [0f64; LANES];
    let (x, y) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = x.remainder().iter().zip(y.remainder());
    let rest: f64 = rest.map(|(&u, &v)| f64::from(u) * f64::from(v)).sum();
    for (x, y) in x.zip(y) {
        for (sum, (&u, &v)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += f64::from(u) * f64::from(v);
        }
    }
    sums.iter().sum::<f64>() + rest
}
