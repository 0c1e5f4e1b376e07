//! `layer_norm` and `rms_norm`; the sums of a row in f64.

use super::super::parallel::for_each_piece;
use super::CpuTensor;

pub fn layer_norm(x: &CpuTensor, weight: &CpuTensor, bias: &CpuTensor, epsilon: f32) -> CpuTensor {
    each_row(x, |row, out| {
        let n = row.len() as f64;
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let scale = (variance + f64::from(epsilon)).sqrt().recip();
        for (j, (out, &v)) in out.iter_mut().zip(row).enumerate() {
            *out = ((f64::from(v) - mean) * scale) as f32 * weight.values[j] + bias.values[j];
        }
    })
}

pub fn rms_norm(x: &CpuTensor, weight: &CpuTensor, epsilon: f32) -> CpuTensor {
    each_row(x, |row, out| {
        let mean_square = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / row.len() as f64;
        let scale = (mean_square + f64::from(epsilon)).sqrt().recip();
        for (j, (out, &v)) in out.iter_mut().zip(row).enumerate() {
            *out = (f64::from(v) * scale) as f32 * weight.values[j];
        }
    })
}

fn each_row(x: &CpuTensor, normalize: impl Fn(&[f32], &mut [f32]) + Sync) -> CpuTensor {
    let cols = x.shape.cols.max(1);
    let mut out = vec![0f32; x.values.len()];
    for_each_piece(&mut out, cols, |first, piece| {
        for (row, out) in x.values[first..].chunks(cols).zip(piece.chunks_mut(cols)) {
            normalize(row, out);
        }
    });
    CpuTensor::new(x.shape, out)
}
