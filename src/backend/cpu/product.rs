//! `gemm` and `syrk`, by faer.

use super::parallel::for_each_matrix;
use super::{CpuTensor, Op, memory};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef, Par};

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
        let mut dst = MatMut::from_row_major_slice_mut(c_i, n, n);
        if op == Op::Transpose && n > TRIANGLE {
            // columns that lie far apart compete for the same lines of the cache: a copy by rows costs less than that
            let mut copy = memory::take(n * k);
            let mut rows = MatMut::from_row_major_slice_mut(&mut copy, n, k);
            copy_transposed(rows.as_mut(), x_i.transpose(), par);
            lower_triangle(dst.as_mut(), accumulate, rows.as_ref(), alpha, par);
            memory::give_back(copy);
        } else {
            lower_triangle(dst.as_mut(), accumulate, x_i, alpha, par);
        }
        mirror_lower(dst, par);
    });
}

/// Triangles of this order are left to faer; in larger ones the square below the diagonal of halves is a plain product, which is
/// quicker.
const TRIANGLE: usize = 512;

fn lower_triangle(c: MatMut<'_, f32>, accumulate: Accum, x: MatRef<'_, f32>, alpha: f32, par: Par) {
    let n = c.nrows();
    if n <= TRIANGLE {
        let (lower, whole) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
        return triangular::matmul(c, lower, accumulate, x, whole, x.transpose(), whole, alpha, par);
    }
    let half = n / 2;
    let (top, bottom) = x.split_at_row(half);
    let (c11, _, c21, c22) = c.split_at_mut(half, half);
    lower_triangle(c11, accumulate, top, alpha, par);
    matmul(c21, accumulate, bottom, top.transpose(), alpha, par);
    lower_triangle(c22, accumulate, bottom, alpha, par);
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

/// Copies the lower triangle onto the upper one, by halves, so that both sides stay in cache.
fn mirror_lower(c: MatMut<'_, f32>, par: Par) {
    const SMALL: usize = 32;
    let n = c.nrows();
    if n <= SMALL {
        return mirror_small(c);
    }
    let half = n / 2;
    let (c11, c12, c21, c22) = c.split_at_mut(half, half);
    let triangles = || both(n, par, || mirror_lower(c11, par), || mirror_lower(c22, par));
    both(n, par, triangles, || copy_transposed(c12, c21.as_ref(), par));
}

/// Runs both, side by side if matrices of this order are worth a thread.
fn both(n: usize, par: Par, first: impl FnOnce() + Send, second: impl FnOnce() + Send) {
    const WORTH_A_THREAD: usize = 512;
    if matches!(par, Par::Seq) || n < WORTH_A_THREAD {
        first();
        second();
    } else {
        rayon::join(first, second);
    }
}

fn mirror_small(mut c: MatMut<'_, f32>) {
    for i in 0..c.nrows() {
        for j in 0..i {
            c[(j, i)] = c[(i, j)];
        }
    }
}

fn copy_transposed(mut to: MatMut<'_, f32>, from: MatRef<'_, f32>, par: Par) {
    const SMALL: usize = 32;
    let (rows, cols) = to.shape();
    if rows.max(cols) <= SMALL {
        for i in 0..rows {
            for j in 0..cols {
                to[(i, j)] = from[(j, i)];
            }
        }
    } else if rows >= cols {
        let ((top, bottom), (left, right)) = (to.split_at_row_mut(rows / 2), from.split_at_col(rows / 2));
        both(rows, par, || copy_transposed(top, left, par), || copy_transposed(bottom, right, par));
    } else {
        let ((left, right), (top, bottom)) = (to.split_at_col_mut(cols / 2), from.split_at_row(cols / 2));
        both(cols, par, || copy_transposed(left, top, par), || copy_transposed(right, bottom, par));
    }
}
