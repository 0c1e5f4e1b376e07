//! Leading eigenvectors by randomized subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011).
//!
//! The iteration runs on the smaller of the two Gram matrices of the factor, formed once in f32; the last
//! multiplication goes through the factor itself, so that eigenvalues are squared norms of what the factor maps the
//! basis to, and do not inherit the Gram's rounding. `docs/numerics.md` says what that costs.

use super::{Accuracy, Eigenpairs, NULL_EIGENVALUE, SymmetricProduct, chebyshev, orthonormalize_rows};
use crate::backend::cpu::dense;
use crate::backend::{Backend, Error, Op, Result, Shape, Tensor};
use faer::{Mat, Par};
use rayon::prelude::*;

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
    let found = match c {
        SymmetricProduct::Congruence { d, g } => {
            let dg = backend.matmul(d, Op::None, g, Op::None)?;
            let c = backend.matmul(&dg, Op::None, d, Op::Transpose)?;
            let traces = backend.inner_products(&dg, d)?;
            let rayleigh_ritz = async |q: B::Tensor, residual: &B::Tensor, accepted: f32| {
                let cq = backend.matmul(&q, Op::None, &c, Op::None)?;
                let h = backend.matmul(&q, Op::None, &cq, Op::Transpose)?;
                let Some((values, vectors)) = ritz_vectors(backend, &h, r, residual, accepted).await? else {
                    return Ok(None);
                };
                let basis = backend.matmul(&vectors, Op::None, &q, Op::None)?;
                let [residual, values, traces] = backend.download_all([residual, &values, &traces]).await?;
                Ok(Some(Found {
                    basis,
                    values: wide(values),
                    traces: wide(traces),
                    residual: largest(&residual),
                }))
            };
            from_invariant_block(backend, &c, block, iterations, start, rayleigh_ritz).await?
        }
        SymmetricProduct::Factor { x, op } => {
            // Z: what the factor maps the block to; H = Z Z^T
            let (d, n) = op.apply(x.shape());
            let other = if op == Op::None { Op::Transpose } else { Op::None };
            let side = if d <= n { op } else { other };
            let gram = backend.gram(x, side)?;
            let norm = backend.frobenius_norms(x)?;
            let rayleigh_ritz = async |q: B::Tensor, residual: &B::Tensor, accepted: f32| {
                let z = backend.matmul(&q, Op::None, x, side)?;
                let h = backend.gram(&z, Op::None)?;
                let Some((_, vectors)) = ritz_vectors(backend, &h, r, residual, accepted).await? else {
                    return Ok(None);
                };
                let basis = if d <= n {
                    backend.matmul(&vectors, Op::None, &q, Op::None)?
                } else {
                    // rows of Z lie in the space of C; ordered by norm, CholeskyQR keeps the leading span
                    orthonormalize_rows(backend, backend.matmul(&vectors, Op::None, &z, Op::None)?, 2)?
                };
                let norms = backend.row_norms(&backend.matmul(&basis, Op::None, x, op)?)?;
                let [residual, norms, norm] = backend.download_all([residual, &norms, &norm]).await?;
                let [values, traces] = [norms, norm].map(|norms| wide(norms).iter().map(|s| s * s).collect());
                Ok(Some(Found { basis, values, traces, residual: largest(&residual) }))
            };
            from_invariant_block(backend, &gram, block, iterations, start, rayleigh_ritz).await?
        }
    };
    without_null_directions(backend, found, r, ranks)
}

/// What a block gave.
struct Found<T> {
    /// `batch x r x d`
    basis: T,
    /// `batch x r`
    values: Vec<f64>,
    traces: Vec<f64>,
    /// The largest of [`PowerStep::residual`].
    residual: f32,
}

/// What `rayleigh_ritz` finds in an orthonormal block (rows) near the dominant invariant subspace of `a` (`batch x m x m`,
/// symmetric), with all that the host needs to know in one read-back.
///
/// `iterations` power steps are enough where the spectrum decays. Where the residual of the block says that it does not,
/// Chebyshev filters follow. `rayleigh_ritz` gets a block, a residual, and up to which it shall go on if it knows.
async fn from_invariant_block<B: Backend>(
    backend: &B,
    a: &B::Tensor,
    block: usize,
    iterations: usize,
    (seed, stream): (u64, u32),
    rayleigh_ritz: impl AsyncFn(B::Tensor, &B::Tensor, f32) -> Result<Option<Found<B::Tensor>>>,
) -> Result<Found<B::Tensor>> {
    let shape = Shape::new(a.shape().batch, block, a.shape().rows);
    let mut q = orthonormalize_rows(backend, backend.random_normal(shape, seed, stream)?, 1)?;
    for _ in 1..iterations {
        q = orthonormalize_rows(backend, backend.matmul(&q, Op::None, a, Op::None)?, 1)?;
    }
    for _ in 0..FILTERS {
        let PowerStep { y, h, residual } = power_step(backend, a, &q)?;
        let found = rayleigh_ritz(orthonormalize_rows(backend, y, 3)?, &residual, ENOUGH).await?;
        if let Some(found) = found.filter(|found| found.residual <= ENOUGH) {
            return Ok(found);
        }
        let bounds = ritz_bounds(backend, &h).await?;
        let degree = bounds.iter().map(|&(least, most)| chebyshev::degree(least, most)).min().unwrap_or(0);
        if degree < 2 {
            break;
        }
        let unwanted: Vec<f64> = bounds.iter().map(|&(least, _)| least).collect();
        q = orthonormalize_rows(backend, chebyshev::filter(backend, a, q, &unwanted, degree)?, 3)?;
    }
    let PowerStep { y, residual, .. } = power_step(backend, a, &q)?;
    let found = rayleigh_ritz(orthonormalize_rows(backend, y, 3)?, &residual, f32::INFINITY).await?;
    found.ok_or_else(|| Error::Internal("a block was refused whatever its residual".into()))
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
    /// `||Q A - H Q||_F / ||Q A||_F`, `batch x 1 x 1`.
    residual: T,
}

fn power_step<B: Backend>(backend: &B, a: &B::Tensor, q: &B::Tensor) -> Result<PowerStep<B::Tensor>> {
    let y = backend.matmul(q, Op::None, a, Op::None)?;
    let h = backend.matmul(&y, Op::None, q, Op::Transpose)?;
    let mut rest = backend.duplicate(&y)?;
    backend.gemm(-1.0, &h, Op::None, q, Op::None, 1.0, &mut rest)?;
    let mut residual = backend.frobenius_norms(&rest)?;
    backend.divide_rows(&mut residual, &backend.frobenius_norms(&y)?)?;
    Ok(PowerStep { y, h, residual })
}

fn largest(residuals: &[f32]) -> f32 {
    residuals.iter().copied().fold(0.0, f32::max)
}

fn wide(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
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

/// The first `r` Ritz values of the projected matrices `h` (`batch x k x k`), `batch x 1 x r`, and as many Ritz vectors as
/// rows, `batch x r x k`. Where they are solved on the host, it looks at the `residual` first, and gives none if that is not
/// `accepted`.
async fn ritz_vectors<B: Backend>(
    backend: &B,
    h: &B::Tensor,
    r: usize,
    residual: &B::Tensor,
    accepted: f32,
) -> Result<Option<(B::Tensor, B::Tensor)>> {
    let Shape { batch, rows: k, .. } = h.shape();
    if k <= backend.largest_eigenproblem() {
        let (values, vectors) = backend.symmetric_eigen(h)?;
        let values = backend.slice(&values, 0..batch, 0..1, 0..r)?;
        return Ok(Some((values, backend.slice(&vectors, 0..batch, 0..r, 0..k)?)));
    }
    let [residual, host] = backend.download_all([residual, h]).await?;
    if largest(&residual) > accepted {
        return Ok(None);
    }
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
    let values: Vec<f32> = solved.iter().flat_map(|e| e.values[..r].iter().map(|&v| v as f32)).collect();
    let values = backend.upload(Shape::new(batch, 1, r), &values)?;
    Ok(Some((values, backend.upload(Shape::new(batch, r, k), &rows)?)))
}

/// Sets null directions to zero, in the values and in the basis.
fn without_null_directions<B: Backend>(
    backend: &B,
    found: Found<B::Tensor>,
    r: usize,
    ranks: &[usize],
) -> Result<Eigenpairs<B::Tensor>> {
    let Found { mut basis, values, traces, .. } = found;
    let nonzero = |(values, &rank): (&[f64], &usize)| {
        let cut = NULL_EIGENVALUE * values.iter().copied().fold(0.0, f64::max);
        let kept = |(j, &value): (usize, &f64)| if j < rank && value > cut { value } else { 0.0 };
        values.iter().enumerate().map(kept).collect()
    };
    let values: Vec<Vec<f64>> = values.chunks(r).zip(ranks).map(nonzero).collect();
    let keep: Vec<f32> = values.iter().flatten().map(|&value| f32::from(value > 0.0)).collect();
    if keep.contains(&0.0) {
        let shape = basis.shape();
        let mask = backend.upload(Shape { cols: 1, ..shape }, &keep)?;
        backend.scale_rows(&mut basis, &mask)?;
    }
    Ok(Eigenpairs { basis, values, traces })
}
