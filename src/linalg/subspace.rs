//! Leading eigenvectors by randomized subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011).
//!
//! The iteration runs on the smaller of the two Gram matrices of the factor, formed once in f32; the last
//! multiplication goes through the factor itself, so that eigenvalues are squared norms of what the factor maps the
//! basis to, and do not inherit the Gram's rounding. `docs/numerics.md` says what that costs.
//!
//! All of it happens on factors scaled by powers of two to about unit norm, which is exact: the squares of small ones would vanish,
//! and those of large ones overflow.

use super::{
    Accuracy, Convergence, NULL_EIGENVALUE, PendingEigenpairs, SymmetricProduct, chebyshev,
    host::{self, Matrix, Threads, symmetric_eigen},
    orthonormalize_rows,
    unit::{UnitScaled, unit_scaled_gram},
};
use crate::backend::{Backend, Error, Op, Result, Shape, Tensor};

/// Vectors in the iterated block for `r` wanted ones: whole fours, as GPUs take them (`gemm_vec4`).
fn block_size(r: usize, accuracy: Accuracy) -> usize {
    (r + ((r as f64 * accuracy.effort().oversampling).ceil() as usize).max(8)).next_multiple_of(4)
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
    seed: u64,
    convergence: Convergence,
) -> Result<PendingEigenpairs<B::Tensor>> {
    let iteration =
        Iteration { block: block_size(r, accuracy), steps: accuracy.effort().iterations, seed, convergence };
    let (mut found, norms) = match c {
        SymmetricProduct::Congruence { d, g } => {
            let d = UnitScaled::of(backend, d, &backend.frobenius_norms(d)?)?;
            let g = unit_scaled_gram(backend, g)?;
            let dg = backend.matmul(&d.values, Op::None, &g.values, Op::None)?;
            let c = backend.matmul(&dg, Op::None, &d.values, Op::Transpose)?;
            let mut norms = backend.inner_products(&dg, &d.values)?;
            to_roots(backend, &mut norms)?;
            let rayleigh_ritz = async |q: B::Tensor, residuals: &B::Tensor, accepted: f32| {
                let cq = backend.matmul(&q, Op::None, &c, Op::None)?;
                let h = backend.matmul(&q, Op::None, &cq, Op::Transpose)?;
                let Some((mut sigma, vectors)) = ritz_vectors(backend, &h, r, residuals, accepted).await?
                else {
                    return Ok(None);
                };
                to_roots(backend, &mut sigma)?;
                Ok(Some(Found { basis: backend.matmul(&vectors, Op::None, &q, Op::None)?, sigma }))
            };
            let mut found = iteration.with_invariant_block(backend, &c, rayleigh_ritz).await?;
            for scaled in [&d, &g] {
                scaled.undo(backend, &mut found.0.sigma)?;
                scaled.undo(backend, &mut norms)?;
            }
            (found, norms)
        }
        SymmetricProduct::Factor { x, op } => {
            // Z: what the factor maps the block to; H = Z Z^T
            let (d, n) = op.apply(x.shape());
            let other = if op == Op::None { Op::Transpose } else { Op::None };
            let side = if d <= n { op } else { other };
            let norms = backend.frobenius_norms(x)?;
            let x = UnitScaled::of(backend, x, &norms)?;
            let gram = backend.gram(&x.values, side)?;
            let rayleigh_ritz = async |q: B::Tensor, residuals: &B::Tensor, accepted: f32| {
                let z = backend.matmul(&q, Op::None, &x.values, side)?;
                let h = backend.gram(&z, Op::None)?;
                let Some((_, vectors)) = ritz_vectors(backend, &h, r, residuals, accepted).await? else {
                    return Ok(None);
                };
                // where the factor maps the Ritz vectors: as long as its singular values
                let mapped = backend.matmul(&vectors, Op::None, &z, Op::None)?;
                let norms = backend.row_norms(&mapped)?;
                let sigma = norms.reshape(Shape::new(vectors.shape().batch, 1, r))?;
                let basis = if d <= n {
                    backend.matmul(&vectors, Op::None, &q, Op::None)?
                } else {
                    // they lie in the space of C; ordered by norm, CholeskyQR keeps the leading span
                    orthonormalize_rows(backend, mapped, 2)?
                };
                Ok(Some(Found { basis, sigma }))
            };
            let mut found = iteration.with_invariant_block(backend, &gram, rayleigh_ritz).await?;
            x.undo(backend, &mut found.0.sigma)?;
            (found, norms)
        }
    };
    drop_null_directions(backend, &mut found.0, ranks)?;
    let (Found { basis, sigma }, residuals) = found;
    Ok(PendingEigenpairs { basis, sigma, norms, residuals })
}

/// Square roots of eigenvalues, or of their sum; rounding may have made null ones negative.
fn to_roots<B: Backend>(backend: &B, values: &mut B::Tensor) -> Result<()> {
    backend.clear_small(values, 0.0)?;
    backend.power(values, 0.5)
}

/// What a block gave.
struct Found<T> {
    /// `batch x r x d`
    basis: T,
    /// `batch x 1 x r`
    sigma: T,
}

/// How a block is iterated.
struct Iteration {
    /// Its vectors.
    block: usize,
    /// Applications of the matrix.
    steps: usize,
    /// Of its random start.
    seed: u64,
    convergence: Convergence,
}

impl Iteration {
    /// What `rayleigh_ritz` finds in an orthonormal block (rows) near the dominant invariant subspace of `a` (`batch x m x m`,
    /// symmetric), and the residuals that are yet to be looked at.
    ///
    /// Power steps are enough where the spectrum decays. Where the residual of the block says that it does not, Chebyshev
    /// filters follow. `rayleigh_ritz` gets a block, its residuals, and up to which it shall go on if it looks at them.
    async fn with_invariant_block<B: Backend>(
        &self,
        backend: &B,
        a: &B::Tensor,
        rayleigh_ritz: impl AsyncFn(B::Tensor, &B::Tensor, f32) -> Result<Option<Found<B::Tensor>>>,
    ) -> Result<(Found<B::Tensor>, B::Tensor)> {
        let seen = || backend.zeros(Shape::new(a.shape().batch, 1, 1));
        let solved_by_host = self.block > backend.largest_eigenproblem();
        let mut q = self.start(backend, a.shape())?;
        for _ in 1..self.steps {
            q = orthonormalize_rows(backend, backend.matmul(&q, Op::None, a, Op::None)?, 1)?;
        }
        for _ in 0..FILTERS {
            let PowerStep { y, h, residuals } = power_step(backend, a, &q)?;
            match rayleigh_ritz(orthonormalize_rows(backend, y, 3)?, &residuals, ENOUGH).await? {
                Some(found) if solved_by_host => return Ok((found, seen()?)),
                Some(found) if self.convergence == Convergence::Deferred => return Ok((found, residuals)),
                Some(found) if converged(&backend.download(&residuals).await?) => {
                    return Ok((found, seen()?));
                }
                _ => {}
            }
            let bounds = ritz_bounds(backend, &h).await?;
            let degree =
                bounds.iter().map(|&(least, most)| chebyshev::degree(least, most)).min().unwrap_or(0);
            if degree < 2 {
                break;
            }
            let unwanted: Vec<f64> = bounds.iter().map(|&(least, _)| least).collect();
            q = orthonormalize_rows(backend, chebyshev::filter(backend, a, q, &unwanted, degree)?, 3)?;
        }
        let PowerStep { y, residuals, .. } = power_step(backend, a, &q)?;
        let found = rayleigh_ritz(orthonormalize_rows(backend, y, 3)?, &residuals, f32::INFINITY).await?;
        let found =
            found.ok_or_else(|| Error::Internal("a block was refused whatever its residual".into()))?;
        Ok((found, seen()?))
    }

    /// The same random block for every member of the batch, so that none depends on what else is in it.
    fn start<B: Backend>(&self, backend: &B, a: Shape) -> Result<B::Tensor> {
        let block = Shape::matrix(self.block, a.rows);
        let one = orthonormalize_rows(backend, backend.random_normal(block, self.seed, 0)?, 1)?;
        let mut all = backend.zeros(Shape { batch: a.batch, ..block })?;
        backend.axpby(1.0, &one, 0.0, &mut all)?;
        Ok(all)
    }
}

/// Chebyshev filters at most, of up to ten products each.
const FILTERS: usize = 4;

/// Whether all iterations with these residuals have found their subspaces. NaN counts as found: no further iteration mends it.
pub fn converged(residuals: &[f32]) -> bool {
    !residuals.iter().any(|&residual| residual > ENOUGH)
}

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
    residuals: T,
}

fn power_step<B: Backend>(backend: &B, a: &B::Tensor, q: &B::Tensor) -> Result<PowerStep<B::Tensor>> {
    let y = backend.matmul(q, Op::None, a, Op::None)?;
    let h = backend.matmul(&y, Op::None, q, Op::Transpose)?;
    let mut rest = backend.duplicate(&y)?;
    backend.gemm(-1.0, &h, Op::None, q, Op::None, 1.0, &mut rest)?;
    let mut residuals = backend.frobenius_norms(&rest)?;
    backend.divide_rows(&mut residuals, &backend.frobenius_norms(&y)?)?;
    Ok(PowerStep { y, h, residuals })
}

/// The smallest and the largest Ritz value of each member of the batch.
async fn ritz_bounds<B: Backend>(backend: &B, h: &B::Tensor) -> Result<Vec<(f64, f64)>> {
    let k = h.shape().rows;
    let host = backend.download(h).await?;
    let bounds = |h: &[f32]| {
        let symmetric = |i: usize, j: usize| 0.5 * (f64::from(h[i * k + j]) + f64::from(h[j * k + i]));
        let eigen = symmetric_eigen(&Matrix::from_fn(k, k, symmetric), Threads::All)?;
        Ok((eigen.values[k - 1], eigen.values[0]))
    };
    host.chunks(k * k).map(bounds).collect()
}

/// The first `r` Ritz values of the projected matrices `h` (`batch x k x k`), `batch x 1 x r`, and as many Ritz vectors as
/// rows, `batch x r x k`. Where they are solved on the host, it looks at the `residuals` first, and gives none if one is not
/// `accepted`.
async fn ritz_vectors<B: Backend>(
    backend: &B,
    h: &B::Tensor,
    r: usize,
    residuals: &B::Tensor,
    accepted: f32,
) -> Result<Option<(B::Tensor, B::Tensor)>> {
    let Shape { batch, rows: k, .. } = h.shape();
    if k <= backend.largest_eigenproblem() {
        let (values, vectors) = backend.symmetric_eigen(h)?;
        let values = backend.slice(&values, 0..batch, 0..1, 0..r)?;
        return Ok(Some((values, backend.slice(&vectors, 0..batch, 0..r, 0..k)?)));
    }
    let [residuals, projected] = backend.download_all([residuals, h]).await?;
    if residuals.iter().any(|&residual| residual > accepted) {
        return Ok(None);
    }
    let solved = host::for_each_member(batch, |b, threads| {
        symmetric_eigen(&Matrix::widened(&projected[b * k * k..(b + 1) * k * k], k, k, Op::None), threads)
    })?;
    let rows: Vec<f32> = solved.iter().flat_map(|e| e.vectors.first_rows(r).narrowed(Op::None)).collect();
    let values: Vec<f32> = solved.iter().flat_map(|e| e.values[..r].iter().map(|&v| v as f32)).collect();
    let values = backend.upload(Shape::new(batch, 1, r), &values)?;
    Ok(Some((values, backend.upload(Shape::new(batch, r, k), &rows)?)))
}

/// Sets null directions to zero, their singular values and their rows of the basis: those past `ranks[b]`, and those whose
/// eigenvalue is at or below [`NULL_EIGENVALUE`] of the largest.
fn drop_null_directions<B: Backend>(
    backend: &B,
    found: &mut Found<B::Tensor>,
    ranks: &[usize],
) -> Result<()> {
    let Shape { batch, cols: r, .. } = found.sigma.shape();
    if ranks.iter().any(|&rank| rank < r) {
        let within = |&rank: &usize| (0..r).map(move |j| f32::from(j < rank));
        let mask: Vec<f32> = ranks.iter().flat_map(within).collect();
        backend.scale_columns(&mut found.sigma, &backend.upload(Shape::new(batch, 1, r), &mask)?)?;
    }
    backend.clear_small(&mut found.sigma, NULL_EIGENVALUE.sqrt() as f32)?;
    let mut kept = backend.duplicate(&found.sigma)?;
    backend.power(&mut kept, 0.0)?;
    backend.scale_rows(&mut found.basis, &kept.reshape(Shape::new(batch, r, 1))?)
}
