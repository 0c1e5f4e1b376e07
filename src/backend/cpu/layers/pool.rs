//! `mean_rows`: pooling over the tokens of each sample.

use super::{CpuSegments, CpuTensor, Shape};

pub fn mean_rows(x: &CpuTensor, segments: &CpuSegments) -> CpuTensor {
    let cols = x.shape.cols;
    let mut out = Vec::with_capacity(segments.samples() * cols);
    for segment in segments.starts.windows(2) {
        let mut sums = vec![0f64; cols];
        for row in segment[0]..segment[1] {
            sums.iter_mut().zip(&x.values[row * cols..]).for_each(|(s, &v)| *s += f64::from(v));
        }
        let n = (segment[1] - segment[0]).max(1) as f64;
        out.extend(sums.iter().map(|s| (s / n) as f32));
    }
    CpuTensor::new(Shape::matrix(segments.samples(), cols), out)
}
