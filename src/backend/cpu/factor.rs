//! `inverse_cholesky`, what is made with its factor, and `symmetric_eigen`.

use super::parallel::{for_each_matrix, for_each_piece};
use super::triangle::{solve_lower, solve_lower_transposed};
use super::{CpuTensor, Error, Op, Result, Shape, dense, memory};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use std::sync::atomic::{AtomicBool, Ordering};

/// Order of the diagonal blocks that are factored one column at a time.
const BLOCK: usize = 32;

pub fn inverse_cholesky(g: &CpuTensor, smallest: f32) -> Result<CpuTensor> {
    let n = g.shape.rows;
    let mut values = memory::zeros(g.shape.len());
    let finite = AtomicBool::new(true);
    for_each_matrix(&mut values, n * n, n * n * n, |i, w, par| {
        finite.fetch_and(inverse_cholesky_of(g.matrix(i), n, smallest, w, par), Ordering::Relaxed);
    });
    all_finite(&finite)?;
    Ok(CpuTensor::new(g.shape, values))
}

/// `L` with `L L^T = S g S`, `S = diag(g)^(-1/2)`, pivots lifted.
struct Scaled {
    /// By columns, [`apart`], in the lower triangle.
    l: CpuTensor,
    s: Vec<f32>,
}

/// Where rows of `n` numbers begin that are worked on again and again: an odd number of cache lines apart, so that numbers
/// below each other do not compete for the same few places of the cache.
fn apart(n: usize) -> usize {
    const LINE: usize = 16;
    (n.div_ceil(LINE) | 1) * LINE
}

impl Scaled {
    fn of(g: &[f32], n: usize, smallest: f32, par: Par) -> Scaled {
        let scale = |v: f32| if v > 0.0 { v.sqrt().recip() } else { 0.0 };
        let s: Vec<f32> = (0..n).map(|i| scale(g[i * n + i])).collect();
        let mut l = memory::take(n * apart(n));
        // g is symmetric: its rows are columns
        for_each_piece(&mut l, apart(n), |first, columns| {
            for (j, column) in (first / apart(n)..).zip(columns.chunks_mut(apart(n))) {
                let of_g = g[j * n..].iter().zip(&s);
                column.iter_mut().zip(of_g).for_each(|(l, (g, s_i))| *l = s_i * g * s[j]);
                column[j] = 1.0;
            }
        });
        let lower = MatMut::from_column_major_slice_with_stride_mut(&mut l, n, n, apart(n));
        cholesky_with_lifted_pivots(lower, smallest, par);
        Scaled { l: CpuTensor::new(Shape::matrix(n, apart(n)), l), s }
    }

    fn l(&self) -> MatRef<'_, f32> {
        let n = self.s.len();
        MatRef::from_column_major_slice_with_stride(&self.l.values, n, n, apart(n))
    }
}

/// `w = L^(-1) S`, given zeros; false if it is not finite.
fn inverse_cholesky_of(g: &[f32], n: usize, smallest: f32, w: &mut [f32], par: Par) -> bool {
    let scaled = Scaled::of(g, n, smallest, par);
    let mut inverse = Mat::<f32>::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), scaled.l(), par);
    for first_row in (0..n).step_by(BLOCK) {
        let rows = first_row..n.min(first_row + BLOCK);
        for (j, &scale) in scaled.s.iter().enumerate().take(rows.end) {
            for i in rows.start.max(j)..rows.end {
                if scaled.s[i] > 0.0 {
                    w[i * n + j] = inverse[(i, j)] * scale;
                }
            }
        }
    }
    w.iter().all(|v| v.is_finite())
}

/// `L^(-1) S x`; the triangle is not inverted.
pub fn apply_inverse_cholesky(g: &CpuTensor, smallest: f32, x: &CpuTensor) -> Result<CpuTensor> {
    let Shape { rows: n, cols, .. } = x.shape;
    let mut y = memory::take(x.shape.len());
    let finite = AtomicBool::new(true);
    for_each_matrix(&mut y, n * cols, n * n * (n + cols), |i, y, par| {
        let scaled = Scaled::of(g.matrix(i), n, smallest, par);
        scale_rows(y, x.matrix(i), cols, &scaled.s);
        solve_lower(scaled.l(), MatMut::from_row_major_slice_mut(y, n, cols), par);
        finite.fetch_and(y.iter().all(|v| v.is_finite()), Ordering::Relaxed);
    });
    all_finite(&finite)?;
    Ok(CpuTensor::new(x.shape, y))
}

/// `y = alpha S L^(-T) L^(-1) S x + beta y`, or with `x` from the left.
pub fn solve(
    alpha: f32,
    (m, smallest): (&CpuTensor, f32),
    side: Op,
    x: &CpuTensor,
    beta: f32,
    y: &mut CpuTensor,
) -> Result<()> {
    let (n, Shape { rows, cols, .. }) = (m.shape.rows, x.shape);
    let finite = AtomicBool::new(true);
    for_each_matrix(&mut y.values, rows * cols, 2 * n * rows * cols, |i, y, par| {
        let scaled = Scaled::of(m.matrix(i), n, smallest, par);
        let mut z = CpuTensor::new(Shape::matrix(rows, apart(cols)), memory::take(rows * apart(cols)));
        let scale = |row: usize| match side {
            Op::None => Scales::All(scaled.s[row]),
            Op::Transpose => Scales::Each(&scaled.s),
        };
        for_each_piece(&mut z.values, apart(cols), |first, piece| {
            let rows = (first / apart(cols)..).zip(piece.chunks_mut(apart(cols)));
            for (row, z) in rows {
                scale(row).multiply(&x.matrix(i)[row * cols..(row + 1) * cols], |j, v| z[j] = v);
            }
        });
        // rows are columns of the transpose
        let block = MatMut::from_column_major_slice_with_stride_mut(&mut z.values, cols, rows, apart(cols));
        let mut block = if side == Op::None { block.transpose_mut() } else { block };
        solve_lower(scaled.l(), block.as_mut(), par);
        solve_lower_transposed(scaled.l(), block, par);
        for_each_piece(y, cols, |first, piece| {
            for (row, y) in (first / cols..).zip(piece.chunks_mut(cols)) {
                let z = &z.values[row * apart(cols)..][..cols];
                scale(row).multiply(z, |j, v| y[j] = alpha * v + if beta == 0.0 { 0.0 } else { beta * y[j] });
            }
            finite.fetch_and(piece.iter().all(|v| v.is_finite()), Ordering::Relaxed);
        });
    });
    all_finite(&finite)
}

/// What the numbers of a row are multiplied by.
enum Scales<'a> {
    All(f32),
    Each(&'a [f32]),
}

impl Scales<'_> {
    fn multiply(&self, row: &[f32], mut put: impl FnMut(usize, f32)) {
        match self {
            Scales::All(s) => row.iter().enumerate().for_each(|(j, v)| put(j, v * s)),
            Scales::Each(s) => row.iter().zip(*s).enumerate().for_each(|(j, (v, s))| put(j, v * s)),
        }
    }
}

fn scale_rows(to: &mut [f32], from: &[f32], cols: usize, s: &[f32]) {
    for_each_piece(to, cols, |first, piece| {
        let rows = piece.chunks_mut(cols).zip(from[first..].chunks(cols)).zip(&s[first / cols..]);
        rows.for_each(|((to, from), s)| to.iter_mut().zip(from).for_each(|(to, from)| *to = from * s));
    });
}

fn all_finite(finite: &AtomicBool) -> Result<()> {
    if finite.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(Error::NotFinite("a Cholesky factorization"))
}

/// In the lower triangle, by halves; a pivot below `lift` becomes `lift`, and the column below it 0. Returns the columns of
/// which that is so.
fn cholesky_with_lifted_pivots(a: MatMut<'_, f32>, lift: f32, par: Par) -> Vec<usize> {
    let n = a.nrows();
    if n <= BLOCK {
        return factor_block(a, lift);
    }
    let half = (n / 2).next_multiple_of(BLOCK);
    let (mut a11, _, mut a21, mut a22) = a.split_at_mut(half, half);
    let mut lifted = cholesky_with_lifted_pivots(a11.as_mut(), lift, par);
    solve_lower(a11.as_ref(), a21.as_mut().transpose_mut(), par);
    lifted.iter().for_each(|&j| a21.as_mut().col_mut(j).fill(0.0));
    triangular::matmul(
        a22.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Add,
        a21.as_ref(),
        BlockStructure::Rectangular,
        a21.as_ref().transpose(),
        BlockStructure::Rectangular,
        -1.0,
        par,
    );
    lifted.extend(cholesky_with_lifted_pivots(a22, lift, par).into_iter().map(|j| half + j));
    lifted
}

/// A diagonal block, a column at a time; returns the columns whose pivots were lifted.
fn factor_block(mut a: MatMut<'_, f32>, lift: f32) -> Vec<usize> {
    let n = a.nrows();
    let mut lifted = Vec::new();
    for j in 0..n {
        let pivot = a[(j, j)].max(lift).sqrt();
        if a[(j, j)] < lift {
            // what is left of this column is rounding noise, which would grow from one lifted pivot to the next
            lifted.push(j);
            (j + 1..n).for_each(|i| a[(i, j)] = 0.0);
        }
        a[(j, j)] = pivot;
        (j + 1..n).for_each(|i| a[(i, j)] /= pivot);
        for k in j + 1..n {
            let factor = a[(k, j)];
            (k..n).for_each(|i| a[(i, k)] -= a[(i, j)] * factor);
        }
    }
    lifted
}

pub fn symmetric_eigen(a: &CpuTensor) -> Result<(CpuTensor, CpuTensor)> {
    let (batch, n) = (a.shape.batch, a.shape.rows);
    let (mut values, mut vectors) = (Vec::with_capacity(batch * n), Vec::with_capacity(batch * n * n));
    for b in 0..batch {
        let a_b = MatRef::from_row_major_slice(a.matrix(b), n, n);
        let eigen = dense::symmetric_eigen(Mat::from_fn(n, n, |i, j| f64::from(a_b[(i, j)])).as_ref())?;
        values.extend(eigen.values.iter().map(|&v| v as f32));
        for j in 0..n {
            vectors.extend((0..n).map(|i| eigen.vectors[(i, j)] as f32));
        }
    }
    Ok((CpuTensor::new(Shape::new(batch, 1, n), values), CpuTensor::new(a.shape, vectors)))
}
