//! Without another crate, on one thread: plain loops, cyclic Jacobi, Gram-Schmidt.

use super::{Matrix, SymmetricEigen, Threads, lift};
use crate::backend::{Error, Op, Result};

/// Sweeps at most; about eight are needed.
const SWEEPS: usize = 60;

pub fn product(a: &Matrix, op_a: Op, b: &Matrix, op_b: Op, _: Threads) -> Matrix {
    let a = if op_a == Op::None { a } else { &transposed(a) };
    let b = if op_b == Op::None { b } else { &transposed(b) };
    let mut values = vec![0.0; a.rows * b.cols];
    for (i, row) in values.chunks_mut(b.cols.max(1)).enumerate() {
        for (&factor, b_row) in a.row(i).iter().zip(b.values.chunks(b.cols.max(1))) {
            row.iter_mut().zip(b_row).for_each(|(c, b)| *c += factor * b);
        }
    }
    Matrix { rows: a.rows, cols: b.cols, values }
}

pub fn gram(a: &Matrix, op: Op, threads: Threads) -> Matrix {
    let other = if op == Op::None { Op::Transpose } else { Op::None };
    product(a, op, a, other, threads)
}

pub fn triangular_factor(x: &[f32], n: usize, threads: Threads) -> Option<Vec<f32>> {
    let x = Matrix::widened(x, x.len() / n, n, Op::None);
    let mut a = gram(&x, Op::Transpose, threads);
    let lift = lift((0..n).map(|i| a.row(i)[i]).sum(), x.rows, n)?;
    (0..n).for_each(|i| a.values[i * n + i] += lift);
    let mut l = Matrix::from_fn(n, n, |_, _| 0.0);
    for i in 0..n {
        for j in 0..=i {
            let before: f64 = l.row(i)[..j].iter().zip(&l.row(j)[..j]).map(|(a, b)| a * b).sum();
            let rest = a.row(i)[j] - before;
            l.values[i * n + j] = if i > j { rest / l.row(j)[j] } else { rest.sqrt() };
        }
    }
    l.values.iter().all(|v| v.is_finite()).then(|| l.narrowed(Op::Transpose))
}

fn transposed(a: &Matrix) -> Matrix {
    Matrix::from_fn(a.cols, a.rows, |i, j| a.values[j * a.cols + i])
}

pub fn symmetric_eigen(a: &Matrix, _: Threads) -> Result<SymmetricEigen> {
    let n = a.rows;
    let (mut a, mut vectors) = (a.clone(), Matrix::from_fn(n, n, |i, j| f64::from(u8::from(i == j))));
    let norm = a.values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let negligible = f64::EPSILON * norm / (n.max(1) as f64);
    for sweep in 0.. {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                if a.values[p * n + q].abs() > negligible {
                    rotate(&mut a, &mut vectors, p, q);
                    rotated = true;
                }
            }
        }
        if !rotated {
            break;
        }
        if sweep == SWEEPS {
            return Err(Error::Internal("an eigendecomposition did not converge".into()));
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a.values[j * n + j].total_cmp(&a.values[i * n + i]));
    Ok(SymmetricEigen {
        values: order.iter().map(|&j| a.values[j * n + j]).collect(),
        vectors: Matrix::from_fn(n, n, |i, j| vectors.row(order[i])[j]),
    })
}

/// Makes `a_pq` zero: `a <- J a J^T`, `vectors <- J vectors` with a rotation J in the plane of `p` and `q`.
fn rotate(a: &mut Matrix, vectors: &mut Matrix, p: usize, q: usize) {
    let n = a.cols;
    let at = |i: usize, j: usize| a.values[i * n + j];
    let slope = (at(q, q) - at(p, p)) / (2.0 * at(p, q));
    let tangent = slope.signum() / (slope.abs() + slope.hypot(1.0));
    let cosine = tangent.hypot(1.0).recip();
    let sine = tangent * cosine;
    let turn = |x: &mut f64, y: &mut f64| (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    for matrix in [&mut *a, vectors] {
        let (upper, lower) = matrix.values.split_at_mut(q * n);
        upper[p * n..(p + 1) * n].iter_mut().zip(&mut lower[..n]).for_each(|(x, y)| turn(x, y));
    }
    for row in a.values.chunks_mut(n) {
        let (left, right) = row.split_at_mut(q);
        turn(&mut left[p], &mut right[0]);
    }
}

/// Modified Gram-Schmidt, twice. A column that depends on those before it becomes zero.
pub fn thin_q(a: &Matrix) -> Matrix {
    let mut q = transposed(a); // columns as rows
    let n = q.cols;
    for j in 0..q.rows {
        let (done, rest) = q.values.split_at_mut(j * n);
        let column = &mut rest[..n];
        let before = norm(column);
        for _ in 0..2 {
            for other in done.chunks(n.max(1)) {
                let overlap: f64 = other.iter().zip(&*column).map(|(a, b)| a * b).sum();
                column.iter_mut().zip(other).for_each(|(x, o)| *x -= overlap * o);
            }
        }
        let after = norm(column);
        let scale = if after > before * f64::EPSILON * n as f64 { after.recip() } else { 0.0 };
        column.iter_mut().for_each(|x| *x *= scale);
    }
    transposed(&q)
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

pub fn for_each_member<T: Send>(
    batch: usize,
    solve: impl Fn(usize, Threads) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    (0..batch).map(|b| solve(b, Threads::One)).collect()
}
