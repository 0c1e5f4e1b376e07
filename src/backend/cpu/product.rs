//! `gemm` and `syrk`, by faer.

use super::parallel::for_each_matrix;
use super::{CpuTensor, Op};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef};

pub fn gemm(alpha: f32, a: &CpuTensor, op_a: Op, b: &CpuTensor, op_b: Op, beta: f32, c: &mut CpuTensor) {
    let (m, n, k) = (c.shape.rows, c.shape.cols, op_a.apply(a.shape).1);
    let matrix_len = c.shape.matrix_len();
    for_each_matrix(&mut c.values, matrix_len, 2 * m * n * k, |i, c_i, par| {
        let b_i = if b.shape.batch == 1 { 0 } else { i };
        let accumulate = prepare(c_i, beta);
        let dst = MatMut::from_row_major_slice_mut(c_i, m, n);
        matmul(dst, accumulate, view(a, i, op_a), view(b, b_i, op_b), alpha, par);
    });
}

pub fn syrk(alpha: f32, x: &CpuTensor, op: Op, beta: f32, c: &mut CpuTensor) {
    let (n, k) = op.apply(x.shape);
    for_each_matrix(&mut c.values, n * n, n * n * k, |i, c_i, par| {
        let accumulate = prepare(c_i, beta);
        let x_i = view(x, i, op);
        let dst = MatMut::from_row_major_slice_mut(&mut *c_i, n, n);
        triangular::matmul(
            dst,
            BlockStructure::TriangularLower,
            accumulate,
            x_i,
            BlockStructure::Rectangular,
            x_i.transpose(),
            BlockStructure::Rectangular,
            alpha,
            par,
        );
        mirror_lower(c_i, n);
    });
}

/// Applies `beta` and says whether the product is added to what `c` then holds.
fn prepare(c: &mut [f32], beta: f32) -> Accum {
    if beta == 0.0 {
        return Accum::Replace;
    }
    if beta != 1.0 {
        c.iter_mut().for_each(|v| *v *= beta);
    }
    Accum::Add
}

fn view(x: &CpuTensor, batch: usize, op: Op) -> MatRef<'_, f32> {
    let x_i = MatRef::from_row_major_slice(x.matrix(batch), x.shape.rows, x.shape.cols);
    match op {
        Op::None => x_i,
        Op::Transpose => x_i.transpose(),
    }
}

/// Copies the lower triangle onto the upper one, in blocks so that both sides stay in cache.
fn mirror_lower(c: &mut [f32], n: usize) {
    const BLOCK: usize = 32;
    for row in (0..n).step_by(BLOCK) {
        for col in (0..=row).step_by(BLOCK) {
            for i in row..(row + BLOCK).min(n) {
                for j in col..(col + BLOCK).min(i) {
                    c[j * n + i] = c[i * n + j];
                }
            }
        }
    }
}
