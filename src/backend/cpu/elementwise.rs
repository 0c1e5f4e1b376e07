//! `copy_block`, `transpose`, `axpby`, the scalings, `polarize`, `power`, `unit_scale` and `clear_small`.

use super::parallel::for_each_piece;
use super::{CpuTensor, Polarity, Shape};

pub fn copy_block(
    src: &CpuTensor,
    from: [usize; 3],
    dst: &mut CpuTensor,
    to: [usize; 3],
    extent: [usize; 3],
) {
    let (s, d) = (src.shape, dst.shape);
    for b in 0..extent[0] {
        for i in 0..extent[1] {
            let at = ((from[0] + b) * s.rows + from[1] + i) * s.cols + from[2];
            let into = ((to[0] + b) * d.rows + to[1] + i) * d.cols + to[2];
            dst.values[into..into + extent[2]].copy_from_slice(&src.values[at..at + extent[2]]);
        }
    }
}

pub fn axpby(alpha: f32, x: &CpuTensor, beta: f32, y: &mut CpuTensor) {
    let broadcast = x.values.len().max(1);
    for_each_piece(&mut y.values, 1, |first, mut out| {
        let mut at = first % broadcast;
        while !out.is_empty() {
            let (now, rest) = out.split_at_mut(out.len().min(broadcast - at));
            let x = &x.values[at..at + now.len()];
            match beta {
                0.0 => now.iter_mut().zip(x).for_each(|(y, x)| *y = alpha * x),
                _ => now.iter_mut().zip(x).for_each(|(y, x)| *y = alpha * x + beta * *y),
            }
            (out, at) = (rest, 0);
        }
    });
}

pub fn scale_rows(x: &mut CpuTensor, s: &CpuTensor) {
    for_each_row(x, s, |v, g| v * g);
}

pub fn divide_rows(x: &mut CpuTensor, s: &CpuTensor) {
    for_each_row(x, s, |v, g| if g == 0.0 { 0.0 } else { v / g });
}

/// `x[b, i, j] = f(x[b, i, j], s[b, i])`
fn for_each_row(x: &mut CpuTensor, s: &CpuTensor, f: impl Fn(f32, f32) -> f32 + Sync) {
    let cols = x.shape.cols.max(1);
    for_each_piece(&mut x.values, cols, |first, rows| {
        for (i, row) in rows.chunks_mut(cols).enumerate() {
            let g = s.values[(first / cols + i) % s.values.len()];
            row.iter_mut().for_each(|v| *v = f(*v, g));
        }
    });
}

pub fn scale_columns(x: &mut CpuTensor, s: &CpuTensor) {
    let (rows, cols) = (x.shape.rows.max(1), x.shape.cols.max(1));
    for_each_piece(&mut x.values, cols, |first, piece| {
        for (i, row) in piece.chunks_mut(cols).enumerate() {
            let batch = (first / cols + i) / rows % s.shape.batch;
            row.iter_mut().zip(&s.values[batch * cols..]).for_each(|(v, &g)| *v *= g);
        }
    });
}

pub fn scale_batches(x: &mut CpuTensor, s: &CpuTensor) {
    let n = x.shape.matrix_len().max(1);
    for (matrix, &g) in x.values.chunks_mut(n).zip(s.values.iter().cycle()) {
        for_each_piece(matrix, 1, |_, piece| piece.iter_mut().for_each(|v| *v *= g));
    }
}

pub fn polarize(v: &mut CpuTensor, exponent: f32, polarity: Polarity) {
    let n = v.shape.matrix_len().max(1);
    for values in v.values.chunks_mut(n) {
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
        values.iter_mut().for_each(|x| *x = polarity.scale(f64::from(*x), mean, f64::from(exponent)) as f32);
    }
}

pub fn power(x: &mut CpuTensor, exponent: f32) {
    for_each_piece(&mut x.values, 1, |_, piece| {
        piece.iter_mut().filter(|v| **v != 0.0).for_each(|v| *v = v.powf(exponent));
    });
}

pub fn unit_scale(x: &mut CpuTensor) {
    for_each_piece(&mut x.values, 1, |_, piece| {
        for v in piece {
            let exponent = v.to_bits() >> 23 & 0xff;
            *v = f32::from_bits((254 - exponent.min(253)).min(253) << 23);
        }
    });
}

pub fn clear_small(x: &mut CpuTensor, fraction: f32) {
    let n = x.shape.matrix_len().max(1);
    for values in x.values.chunks_mut(n) {
        let cut = fraction * values.iter().copied().fold(0.0, f32::max);
        values.iter_mut().filter(|v| **v <= cut).for_each(|v| *v = 0.0);
    }
}

/// Tile by tile, so that lines of the source stay in the cache while columns are written.
pub fn transpose(x: &CpuTensor) -> CpuTensor {
    const SIDE: usize = 32;
    let Shape { batch, rows, cols } = x.shape;
    let mut out = vec![0f32; x.values.len()];
    if !x.shape.is_empty() {
        // a piece is some whole rows of the result
        for_each_piece(&mut out, rows, |first, piece| {
            let first = first / rows;
            for (tile, lines) in piece.chunks_mut(SIDE * rows).enumerate() {
                for start in (0..rows).step_by(SIDE) {
                    for (line, into) in lines.chunks_mut(rows).enumerate() {
                        let (b, j) =
                            ((first + tile * SIDE + line) / cols, (first + tile * SIDE + line) % cols);
                        let end = rows.min(start + SIDE);
                        for (i, value) in (start..end).zip(&mut into[start..end]) {
                            *value = x.values[(b * rows + i) * cols + j];
                        }
                    }
                }
            }
        });
    }
    CpuTensor::new(Shape::new(batch, cols, rows), out)
}
