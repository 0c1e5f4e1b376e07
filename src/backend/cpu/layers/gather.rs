//! `gather_rows` and `patches`: copies in another order.

use super::super::parallel::for_each_piece;
use super::{CpuTensor, Shape};

pub fn gather_rows(x: &CpuTensor, rows: &[u32]) -> CpuTensor {
    let cols = x.shape.cols;
    let mut out = vec![0f32; rows.len() * cols];
    for_each_piece(&mut out, cols, |first, piece| {
        for (row, &from) in piece.chunks_mut(cols).zip(&rows[first / cols..]) {
            row.copy_from_slice(&x.values[from as usize * cols..][..cols]);
        }
    });
    CpuTensor::new(Shape::matrix(rows.len(), cols), out)
}

pub fn patches(images: &CpuTensor, channels: usize, size: usize) -> CpuTensor {
    let Shape { batch, rows: height, cols: width } = images.shape;
    let (down, across) = (height / size, width / size);
    let (patches, columns) = (down * across, channels * size * size);
    let shape = Shape::matrix(batch / channels * patches, columns);
    let mut out = vec![0f32; shape.len()];
    for_each_piece(&mut out, columns, |first, piece| {
        for (i, row) in piece.chunks_mut(columns).enumerate() {
            let patch = first / columns + i;
            let (sample, top, left) =
                (patch / patches, patch % patches / across * size, patch % across * size);
            for (line, into) in row.chunks_mut(size).enumerate() {
                let (channel, y) = (sample * channels + line / size, top + line % size);
                into.copy_from_slice(&images.values[(channel * height + y) * width + left..][..size]);
            }
        }
    });
    CpuTensor::new(shape, out)
}
