//! `rotary`: pairs of columns turned by tabulated angles.

use super::super::parallel::for_each_piece;
use super::CpuTensor;

pub fn rotary(x: &mut CpuTensor, cos: &CpuTensor, sin: &CpuTensor, head_dim: usize) {
    let (cols, half) = (x.shape.cols, cos.shape.cols);
    for_each_piece(&mut x.values, cols, |first, rows| {
        let first = first / cols;
        for (i, row) in rows.chunks_mut(cols).enumerate() {
            let table = (first + i) * half..(first + i + 1) * half;
            let (cos, sin) = (&cos.values[table.clone()], &sin.values[table]);
            for head in row.chunks_mut(head_dim) {
                let (left, right) = head.split_at_mut(half);
                for j in 0..half {
                    let (a, b) = (left[j], right[j]);
                    left[j] = a * cos[j] - b * sin[j];
                    right[j] = b * cos[j] + a * sin[j];
                }
            }
        }
    });
}
