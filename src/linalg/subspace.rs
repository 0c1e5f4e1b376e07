//! Leading eigenvectors by randomized subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011).
//!
//! The iteration runs on the smaller of the two Gram matrices of the factor, formed once in f32; the last
//! multiplication goes through the factor itself, so that eigenvalues are squared norms of what the factor maps the
//! basis to, and do not inherit the Gram's rounding. `docs/numerics.md` says what that costs.

use super::{Accuracy, Eigenpairs, NULL_EIGENVALUE, SymmetricProduct, chebyshev, orthonormalize_rows};
use crate::backend::cpu::dense;
use crate::backend::{Backend, Op, Result, Shape, Tensor};
use faer::{Mat, Par};
use rayon::prelude::*;

/// Largest projected problem that is solved on the device (parallel Jacobi); larger ones are read back.
const DEVICE_EIGEN: usize = 128;

/// Vectors in the iterated block for `r` wanted ones.
fn block_size(r: usize, accuracy: Accuracy) -> usize {
    r + ((r as f64 * accuracy.effort().oversampling).ceil() as usize).max(8)
}

/// Whether the block is small enough, against the matrix iterated on, for the iteration to beat a full decomposition.
pub fn pays_off<T: Tensor>(c: &SymmetricProduct<'_, T>, r: usize, accuracy: Accuracy) -> bool {
    let smaller = match c {
        SymmetricProduct::Factor { x, .. } => x.shape().rows.min(x.shape().cols),
        SymmetricProduct::Congruence { d, .. } => d.shape().rows,
    };
    block_size(r, accuracy) * 5 < smaller * 4
}

/// The `r` leading eigenpairs of `c`, of which member `b` has at most `ranks[b]` nonzero eigenvalues.
pub async fn iterate<B: Backend>(
    backend: &B,
    c: SymmetricProduct<'_, B::Tensor>,
    r: usize,
    ranks: &[usize],
    accuracy: Accuracy,
    start: (u64, u32),
) -> Result<Eigenpairs<B::Tensor>> {
    let block = block_size(r, accuracy);
    let iterations = accuracy.effort().iterations;
    match c {
        SymmetricProduct::Congruence { d, g } => {
            let dg = backend.matmul(d, Op::None, g, Op::None)?;
            let c = backend.matmul(&dg, Op::None, d, Op::Transpose)?;
            let q = invariant_block(backend, &c, block, iterations, start).await?;
            let cq = backend.matmul(&q, Op::None, &c, Op::None)?;
            let h = backend.matmul(&q, Op::None, &cq, Op::Transpose)?;
            let (values, vectors) = ritz_vectors(backend, &h, r).await?;
            let basis = backend.matmul(&vectors, Op::None, &q, Op::None)?;
            finish(backend, basis, values, traces(backend, &c).await?, ranks).await
        }
        SymmetricProduct::Factor { x, op } => {
            // Z: what the factor maps the block to; H = Z Z^T
            let (d, n) = op.apply(x.shape());
            let other = if op == Op::None { Op::Transpose } else { Op::None };
            let side = if d <= n { op } else { other };
            let gram = backend.gram(x, side)?;
            let q = invariant_block(backend, &gram, block, iterations, start).await?;
            let z = backend.matmul(&q, Op::None, x, side)?;
            let h = backend.gram(&z, Op::None)?;
            let (_, vectors) = ritz_vectors(backend, &h, r).await?;
            let basis = if d <= n {
                backend.matmul(&vectors, Op::None, &q, Op::None)?
            } else {
                // rows of Z lie in the space of C; ordered by norm, CholeskyQR keeps the leading span
                orthonormalize_rows(backend, backend.matmul(&vectors, Op::None, &z, Op::None)?, 2)?
            };
            let mapped = backend.matmul(&basis, Op::None, x, op)?;
            let norms = backend.download(&backend.row_norms(&mapped)?).await?;
            let values = norms.chunks(r).map(|v| v.iter().map(|&s| f64::from(s).powi(2)).collect()).collect();
            let total = backend.download(&backend.frobenius_norms(x)?).await?;
            finish(backend, basis, values, total.iter().map(|&s| f64::from(s).powi(2)).collect(), ranks).await
        }
    }
}

/// An orthonormal block (rows) near the dominant invariant subspace of `a` (`batch x m x m`, symmetric).
///
/// `iterations` power steps are enough where the spectrum decays. Where the residual of the block says that it does not,
/// Chebyshev filters follow.
async fn invariant_block<B: Backend>(
    backend: &B,
    a: &B::Tensor,
    block: usize,
    iterations: usize,
    (seed, stream): (u64, u32),
) -> Result<B::Tensor> {
    let shape = Shape::new(a.shape().batch, block, a.shape().rows);
    let mut q = orthonormalize_rows(backend, backend.random_normal(shape, seed, stream)?, 1)?;
    for _ in 1..iterations {
        q = orthonormalize_rows(backend, backend.matmul(&q, Op::None, a, Op::None)?, 1)?;
    }
    for _ in 0..FILTERS {
        let step = power_step(backend, a, &q).await?;
        if step.residual <= ENOUGH {
            return orthonormalize_rows(backend, step.y, 3);
        }
        let bounds = ritz_bounds(backend, &step.h).await?;
        let degree = bounds.iter().map(|&(least, most)| chebyshev::degree(least, most)).min().unwrap_or(0);
        if degree < 2 {
            return orthonormalize_rows(backend, step.y, 3);
        }
        let unwanted: Vec<f64> = bounds.iter().map(|&(least, _)| least).collect();
        q = orthonormalize_rows(backend, chebyshev::filter(backend, a, q, &unwanted, degree)?, 3)?;
    }
    Ok(q)
}

/// Chebyshev filters at most, of up to ten products each.
const FILTERS: usize = 4;

/// `||Q A - H Q||_F / ||Q A||_F` up to which a block is taken for invariant; it bounds all its Ritz residuals, and eigenvalues
/// are off by about its square. One more power step follows. Output shifts of a decaying spectrum (768 x 768, r = 96) are at 6e-5
/// after the steps of `balanced` and at 7e-4 after those of `fast`; eigenvalues `1 / (1 + j / 60)` are at 0.1.
const ENOUGH: f32 = 0.02;

/// A power step, and what it shows of the block it started from.
struct PowerStep<T> {
    /// `Q A`
    y: T,
    /// `H = Q A Q^T`
    h: T,
    /// The largest relative residual in the batch.
    residual: f32,
}

async fn power_step<B: Backend>(backend: &B, a: &B::Tensor, q: &B::Tensor) -> Result<PowerStep<B::Tensor>> {
    let y = backend.matmul(q, Op::None, a, Op::None)?;
    let h = backend.matmul(&y, Op::None, q, Op::Transpose)?;
    let mut rest = backend.duplicate(&y)?;
    backend.gemm(-1.0, &h, Op::None, q, Op::None, 1.0, &mut rest)?;
    let mut ratio = backend.frobenius_norms(&rest)?;
    backend.divide_rows(&mut ratio, &backend.frobenius_norms(&y)?)?;
    let residual = backend.download(&ratio).await?.into_iter().fold(0.0, f32::max);
    Ok(PowerStep { y, h, residual })
}

/// The smallest and the largest Ritz value of each member of the batch.
async fn ritz_bounds<B: Backend>(backend: &B, h: &B::Tensor) -> Result<Vec<(f64, f64)>> {
    let k = h.shape().rows;
    let host = backend.download(h).await?;
    let bounds = |h: &[f32]| {
        let symmetric = |i: usize, j: usize| 0.5 * (f64::from(h[i * k + j]) + f64::from(h[j * k + i]));
        let eigen = dense::symmetric_eigen(Mat::from_fn(k, k, symmetric).as_ref())?;
        Ok((eigen.values[k - 1], eigen.values[0]))
    };
    host.chunks(k * k).map(bounds).collect()
}

/// Ritz values of the projected matrices `h` (`batch x k x k`) and the first `r` Ritz vectors as rows, `batch x r x k`.
async fn ritz_vectors<B: Backend>(
    backend: &B,
    h: &B::Tensor,
    r: usize,
) -> Result<(Vec<Vec<f64>>, B::Tensor)> {
    let Shape { batch, rows: k, .. } = h.shape();
    if k <= DEVICE_EIGEN {
        let (values, vectors) = backend.symmetric_eigen(h)?;
        let values = backend.download(&values).await?;
        let values =
            values.chunks(k).map(|v| v[..r].iter().map(|&x| f64::from(x).max(0.0)).collect()).collect();
        return Ok((values, backend.slice(&vectors, 0..batch, 0..r, 0..k)?));
    }
    let host = backend.download(h).await?;
    let par = if batch >= rayon::current_num_threads() { Par::Seq } else { Par::rayon(0) };
    let solved: Vec<dense::SymmetricEigen> = (0..batch)
        .into_par_iter()
        .map(|b| {
            let h_b = &host[b * k * k..(b + 1) * k * k];
            dense::symmetric_eigen_with(Mat::from_fn(k, k, |i, j| f64::from(h_b[i * k + j])).as_ref(), par)
        })
        .collect::<Result<_>>()?;
    let row =
        |e: &dense::SymmetricEigen, j: usize| (0..k).map(|i| e.vectors[(i, j)] as f32).collect::<Vec<_>>();
    let rows: Vec<f32> = solved.iter().flat_map(|e| (0..r).flat_map(|j| row(e, j))).collect();
    let values = solved.iter().map(|e| e.values[..r].iter().map(|v| v.max(0.0)).collect()).collect();
    Ok((values, backend.upload(Shape::new(batch, r, k), &rows)?))
}

/// The traces of `c` (`batch x m x m`).
async fn traces<B: Backend>(backend: &B, c: &B::Tensor) -> Result<Vec<f64>> {
    let m = c.shape().rows;
    let host = backend.download(c).await?;
    Ok(host.chunks(m * m).map(|c| (0..m).map(|i| f64::from(c[i * m + i])).sum()).collect())
}

/// Sets null directions to zero, in the values and in the basis.
async fn finish<B: Backend>(
    backend: &B,
    mut basis: B::Tensor,
    mut values: Vec<Vec<f64>>,
    traces: Vec<f64>,
    ranks: &[usize],
) -> Result<Eigenpairs<B::Tensor>> {
    let mut keep = Vec::with_capacity(values.len() * basis.shape().rows);
    for (values, &rank) in values.iter_mut().zip(ranks) {
        let cut = NULL_EIGENVALUE * values.iter().copied().fold(0.0, f64::max);
        for (j, value) in values.iter_mut().enumerate() {
            if j >= rank || *value <= cut {
                *value = 0.0;
            }
            keep.push(if *value > 0.0 { 1f32 } else { 0.0 });
        }
    }
    if keep.contains(&0.0) {
        let shape = basis.shape();
        let mask = backend.upload(Shape { cols: 1, ..shape }, &keep)?;
        backend.scale_rows(&mut basis, &mask)?;
    }
    Ok(Eigenpairs { basis, values, traces })
}
