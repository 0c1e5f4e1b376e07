//! Systems with a triangle, by halves: nearly all of the work is plain products. A merge takes a tenth less time than with
//! faer's solver (`docs/rejected-optimizations.md`).

use super::memory;
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Accum, Mat, MatMut, MatRef, Par};

/// Triangles of this order are inverted: a product with the inverse is quicker than substitution, though half of it is zeros.
const INVERTED: usize = 192;

/// `x = L^(-1) x`.
pub fn solve_lower(l: MatRef<'_, f32>, x: MatMut<'_, f32>, par: Par) {
    let n = l.nrows();
    if n <= INVERTED {
        return multiply(inverse(l).as_ref(), x, par);
    }
    let half = n / 2;
    let (l11, _, l21, l22) = l.split_at(half, half);
    let (mut top, mut bottom) = x.split_at_row_mut(half);
    solve_lower(l11, top.as_mut(), par);
    matmul(bottom.as_mut(), Accum::Add, l21, top.as_ref(), -1.0, par);
    solve_lower(l22, bottom, par);
}

/// `x = L^(-T) x`.
pub fn solve_lower_transposed(l: MatRef<'_, f32>, x: MatMut<'_, f32>, par: Par) {
    let n = l.nrows();
    if n <= INVERTED {
        return multiply(inverse(l).transpose(), x, par);
    }
    let half = n / 2;
    let (l11, _, l21, l22) = l.split_at(half, half);
    let (mut top, mut bottom) = x.split_at_row_mut(half);
    solve_lower_transposed(l22, bottom.as_mut(), par);
    matmul(top.as_mut(), Accum::Add, l21.transpose(), bottom.as_ref(), -1.0, par);
    solve_lower_transposed(l11, top, par);
}

fn inverse(l: MatRef<'_, f32>) -> Mat<f32> {
    let mut inverse = Mat::zeros(l.nrows(), l.ncols());
    invert_lower_triangular(inverse.as_mut(), l, Par::Seq);
    inverse
}

/// `x = a x`.
fn multiply(a: MatRef<'_, f32>, mut x: MatMut<'_, f32>, par: Par) {
    let (rows, cols) = x.shape();
    let mut copy = memory::take(rows * cols);
    let by_rows = x.row_stride().unsigned_abs() > x.col_stride().unsigned_abs();
    let mut before = if by_rows {
        MatMut::from_row_major_slice_mut(&mut copy, rows, cols)
    } else {
        MatMut::from_column_major_slice_mut(&mut copy, rows, cols)
    };
    before.copy_from(x.as_ref());
    matmul(x.as_mut(), Accum::Replace, a, before.as_ref(), 1.0, par);
    memory::give_back(copy);
}
