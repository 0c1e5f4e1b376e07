//! Leading eigenvectors by randomized subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011).
//!
//! The iteration runs on the smaller of the two Gram matrices of the factor, formed once in f32; the last
//! multiplication goes through the factor itself, so that eigenvalues are squared norms of what the factor maps the
//! basis to, and do not inherit the Gram's rounding. `docs/numerics.md` says what that costs.
//!
//! All of it happens on factors scaled by powers of two to about unit norm, which is exact: the squares of small ones would vanish,
//! and those of large ones overflow.

use super::{
    Accuracy, NULL_EIGENVALUE, PendingEigenpairs, SymmetricProduct, chebyshev,
    host::{self, Matrix, SymmetricEigen, Threads, symmetric_eigen},
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
) -> Result<PendingEigenpairs<B::Tensor>> {
    let block = block_size(r, accuracy);
    let iteration = Iteration { wanted: r, block, steps: accuracy.effort().iterations, seed };
    let (mut found, norms) = match c {
        SymmetricProduct::Congruence { d, g } => {
            let d = UnitScaled::of(backend, d, &backend.frobenius_norms(d)?)?;
            let g = unit_scaled_gram(backend, g)?;
            let dg = backend.matmul(&d.values, Op::None, &g.values, Op::None)?;
            let c = backend.matmul(&dg, Op::None, &d.values, Op::Transpose)?;
            let mut norms = backend.inner_products(&dg, &d.values)?;
            to_roots(backend, &mut norms)?;
            let mut found = iteration.run(backend, Problem { matrix: c, factor: None }).await?;
            for scaled in [&d, &g] {
                scaled.undo(backend, &mut found.sigma)?;
                scaled.undo(backend, &mut norms)?;
            }
            (found, norms)
        }
        SymmetricProduct::Factor { x, op } => {
            let (d, n) = op.apply(x.shape());
            let other = if op == Op::None { Op::Transpose } else { Op::None };
            let side = if d <= n { op } else { other };
            let norms = backend.frobenius_norms(x)?;
            let UnitScaled { values, scales } = UnitScaled::of(backend, x, &norms)?;
            let matrix = backend.gram(&values, side)?;
            let factor = Some(Factor { values, side, in_range: d <= n });
            let mut found = iteration.run(backend, Problem { matrix, factor }).await?;
            backend.divide_rows(&mut found.sigma, &scales)?;
            (found, norms)
        }
    };
    drop_null_directions(backend, &mut found, ranks)?;
    Ok(PendingEigenpairs { basis: found.basis, sigma: found.sigma, norms })
}

/// Square roots of eigenvalues, or of their sum; rounding may have made null ones negative.
fn to_roots<B: Backend>(backend: &B, values: &mut B::Tensor) -> Result<()> {
    backend.clear_small(values, 0.0)?;
    backend.power(values, 0.5)
}

/// A batch of symmetric matrices whose dominant invariant subspaces are looked for.
struct Problem<T> {
    /// `A`, `batch x m x m`.
    matrix: T,
    /// What it is the Gram matrix of, if it is one.
    factor: Option<Factor<T>>,
}

/// `A = op(X) op(X)^T` of one side of `X`.
struct Factor<T> {
    /// `X`
    values: T,
    /// `op`
    side: Op,
    /// Whether the eigenvectors that are wanted are those of `A`; else they are what the factor maps those to.
    in_range: bool,
}

impl<T: Tensor> Problem<T> {
    /// Some of the batch.
    fn members<B: Backend<Tensor = T>>(&self, backend: &B, chosen: &[usize]) -> Result<Self> {
        let factor = |of: &Factor<T>| {
            let values = members(backend, &of.values, chosen)?;
            Ok(Factor { values, side: of.side, in_range: of.in_range })
        };
        let factor = self.factor.as_ref().map(factor).transpose()?;
        Ok(Problem { matrix: members(backend, &self.matrix, chosen)?, factor })
    }

    /// The `r` leading pairs that an orthonormal block near the dominant invariant subspace holds (Rayleigh and Ritz).
    async fn found_in<B: Backend<Tensor = T>>(&self, backend: &B, q: T, r: usize) -> Result<Found<T>> {
        let Some(Factor { values, side, in_range }) = &self.factor else {
            let qa = backend.matmul(&q, Op::None, &self.matrix, Op::None)?;
            let h = backend.matmul(&q, Op::None, &qa, Op::Transpose)?;
            let (mut sigma, vectors) = ritz_vectors(backend, &h, r).await?;
            to_roots(backend, &mut sigma)?;
            return Ok(Found { basis: backend.matmul(&vectors, Op::None, &q, Op::None)?, sigma });
        };
        // Z: what the factor maps the block to; H = Z Z^T
        let z = backend.matmul(&q, Op::None, values, *side)?;
        let h = backend.gram(&z, Op::None)?;
        let (_, vectors) = ritz_vectors(backend, &h, r).await?;
        // where the factor maps the Ritz vectors: as long as its singular values
        let mapped = backend.matmul(&vectors, Op::None, &z, Op::None)?;
        let sigma = backend.row_norms(&mapped)?.reshape(Shape::new(vectors.shape().batch, 1, r))?;
        let basis = if *in_range {
            backend.matmul(&vectors, Op::None, &q, Op::None)?
        } else {
            // they lie in the space of C; ordered by norm, CholeskyQR keeps the leading span
            orthonormalize_rows(backend, mapped, 2)?
        };
        Ok(Found { basis, sigma })
    }
}

/// What a block gave.
struct Found<T> {
    /// `batch x r x d`
    basis: T,
    /// `batch x 1 x r`
    sigma: T,
}

impl<T: Tensor> Found<T> {
    /// Nothing yet, for as many members, of the shapes that these have.
    fn room_for<B: Backend<Tensor = T>>(&self, backend: &B, batch: usize) -> Result<Self> {
        let zeros = |x: &T| backend.zeros(Shape { batch, ..x.shape() });
        Ok(Found { basis: zeros(&self.basis)?, sigma: zeros(&self.sigma)? })
    }

    /// Takes member `from` of another over as `to`.
    fn take<B: Backend<Tensor = T>>(
        &mut self,
        backend: &B,
        other: &Self,
        from: usize,
        to: usize,
    ) -> Result<()> {
        for (mine, theirs) in [(&mut self.basis, &other.basis), (&mut self.sigma, &other.sigma)] {
            let Shape { rows, cols, .. } = theirs.shape();
            backend.copy_block(theirs, [from, 0, 0], mine, [to, 0, 0], [1, rows, cols])?;
        }
        Ok(())
    }
}

/// Some members of a batch.
fn members<B: Backend>(backend: &B, x: &B::Tensor, chosen: &[usize]) -> Result<B::Tensor> {
    let Shape { rows, cols, .. } = x.shape();
    let mut some = backend.zeros(Shape::new(chosen.len(), rows, cols))?;
    for (to, &from) in chosen.iter().enumerate() {
        backend.copy_block(x, [from, 0, 0], &mut some, [to, 0, 0], [1, rows, cols])?;
    }
    Ok(some)
}

/// How a block is iterated.
struct Iteration {
    /// Eigenpairs.
    wanted: usize,
    /// Vectors of the block.
    block: usize,
    /// Applications of the matrix.
    steps: usize,
    /// Of the random start.
    seed: u64,
}

impl Iteration {
    /// Power steps are enough where the spectrum decays. Where the residual of a member's block says that it does not, Chebyshev
    /// filters follow, for that member alone. The host waits once, and once more after each filter.
    async fn run<B: Backend>(&self, backend: &B, problem: Problem<B::Tensor>) -> Result<Found<B::Tensor>> {
        let mut rest = problem;
        let batch = rest.matrix.shape().batch;
        let mut q = self.start(backend, rest.matrix.shape())?;
        for _ in 1..self.steps {
            q = orthonormalize_rows(backend, backend.matmul(&q, Op::None, &rest.matrix, Op::None)?, 1)?;
        }
        let mut whole: Option<Found<B::Tensor>> = None;
        let mut which: Vec<usize> = (0..batch).collect(); // members of the whole that the rest are
        for filters in 0.. {
            let accepted = if filters < FILTERS { ENOUGH } else { f32::INFINITY };
            let Attempt { found, done, open } = self.attempt(backend, &rest, &q, accepted).await?;
            if open.is_empty() && whole.is_none() {
                return found.ok_or_else(nothing_found);
            }
            if let Some(found) = found {
                let mut all = whole.take().map_or_else(|| found.room_for(backend, batch), Ok)?;
                for &(from, member) in &done {
                    all.take(backend, &found, from, which[member])?;
                }
                whole = Some(all);
            }
            if open.is_empty() {
                break;
            }
            let degree = open.iter().map(Open::degree).min().unwrap_or(0);
            let unwanted: Vec<f64> = open.iter().map(|open| open.least).collect();
            let chosen: Vec<usize> = open.iter().map(|open| open.member).collect();
            which = chosen.iter().map(|&member| which[member]).collect();
            let start = members(backend, &q, &chosen)?;
            rest = rest.members(backend, &chosen)?;
            let filtered = chebyshev::filter(backend, &rest.matrix, start, &unwanted, degree)?;
            q = orthonormalize_rows(backend, filtered, 3)?;
        }
        whole.ok_or_else(nothing_found)
    }

    /// One more power step, and what its block holds of the members whose residual is accepted, or that no filter would help.
    ///
    /// Where the device solves the projected problems it is not kept waiting: it gets those of all members. On the host, which
    /// takes long for them, the residuals are looked at first.
    async fn attempt<B: Backend>(
        &self,
        backend: &B,
        problem: &Problem<B::Tensor>,
        q: &B::Tensor,
        accepted: f32,
    ) -> Result<Attempt<B::Tensor>> {
        let PowerStep { y, h, residuals } = power_step(backend, &problem.matrix, q)?;
        let all = 0..q.shape().batch;
        let by_device = self.block <= backend.largest_eigenproblem();
        let (mut y, mut found) = (Some(y), None);
        if let Some(y) = y.take_if(|_| by_device) {
            found = Some(problem.found_in(backend, orthonormalize_rows(backend, y, 3)?, self.wanted).await?);
        }
        let residuals = backend.download(&residuals).await?;
        let missing: Vec<usize> = all.clone().filter(|&b| residuals[b] > accepted).collect();
        let open = helped(ritz_bounds(backend, &h, &missing).await?);
        let done: Vec<usize> = all.clone().filter(|b| open.iter().all(|open| open.member != *b)).collect();
        let Some(y) = y else {
            return Ok(Attempt { found, done: done.into_iter().map(|b| (b, b)).collect(), open });
        };
        if open.is_empty() {
            found = Some(problem.found_in(backend, orthonormalize_rows(backend, y, 3)?, self.wanted).await?);
        } else if !done.is_empty() {
            let y = orthonormalize_rows(backend, members(backend, &y, &done)?, 3)?;
            let part = problem.members(backend, &done)?;
            found = Some(part.found_in(backend, y, self.wanted).await?);
        }
        Ok(Attempt { found, done: done.into_iter().enumerate().collect(), open })
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

/// What came of a block.
struct Attempt<T> {
    /// Pairs of members that are done; none if none is.
    found: Option<Found<T>>,
    /// Where they are in `found`, and which members they are.
    done: Vec<(usize, usize)>,
    /// The others.
    open: Vec<Open>,
}

/// A member whose block is not invariant yet, with the smallest and the largest Ritz value.
struct Open {
    member: usize,
    least: f64,
    most: f64,
}

impl Open {
    /// Of a filter.
    fn degree(&self) -> usize {
        chebyshev::degree(self.least, self.most)
    }
}

/// The members, if filters help all of them: all are filtered to the same degree.
fn helped(open: Vec<Open>) -> Vec<Open> {
    if open.iter().all(|open| open.degree() >= 2) { open } else { Vec::new() }
}

fn nothing_found() -> Error {
    Error::Internal("a block was refused whatever its residual".into())
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

/// The smallest and the largest Ritz value of some members of the batch.
async fn ritz_bounds<B: Backend>(backend: &B, h: &B::Tensor, chosen: &[usize]) -> Result<Vec<Open>> {
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let (k, h) = (h.shape().rows, members(backend, h, chosen)?);
    let values: Vec<f64> = if k <= backend.largest_eigenproblem() {
        let values = backend.download(&backend.symmetric_eigen(&h)?.0).await?;
        values.into_iter().map(f64::from).collect()
    } else {
        let h = backend.download(&h).await?;
        let each = host::for_each_member(chosen.len(), |b, threads| solve_on_host(&h, b, k, threads))?;
        each.into_iter().flat_map(|eigen| eigen.values).collect()
    };
    let open = |(&member, values): (&usize, &[f64])| Open { member, least: values[k - 1], most: values[0] };
    Ok(chosen.iter().zip(values.chunks(k)).map(open).collect())
}

/// Eigenpairs of member `b` of matrices `k x k`, in f64.
fn solve_on_host(matrices: &[f32], b: usize, k: usize, threads: Threads) -> Result<SymmetricEigen> {
    symmetric_eigen(&Matrix::widened(&matrices[b * k * k..(b + 1) * k * k], k, k, Op::None), threads)
}

/// The first `r` Ritz values of the projected matrices `h` (`batch x k x k`), `batch x 1 x r`, and as many Ritz vectors as
/// rows, `batch x r x k`.
async fn ritz_vectors<B: Backend>(backend: &B, h: &B::Tensor, r: usize) -> Result<(B::Tensor, B::Tensor)> {
    let Shape { batch, rows: k, .. } = h.shape();
    if k <= backend.largest_eigenproblem() {
        let (values, vectors) = backend.symmetric_eigen(h)?;
        let values = backend.slice(&values, 0..batch, 0..1, 0..r)?;
        return Ok((values, backend.slice(&vectors, 0..batch, 0..r, 0..k)?));
    }
    let projected = backend.download(h).await?;
    let solved = host::for_each_member(batch, |b, threads| solve_on_host(&projected, b, k, threads))?;
    let rows: Vec<f32> = solved.iter().flat_map(|e| e.vectors.first_rows(r).narrowed(Op::None)).collect();
    let values: Vec<f32> = solved.iter().flat_map(|e| e.values[..r].iter().map(|&v| v as f32)).collect();
    let values = backend.upload(Shape::new(batch, 1, r), &values)?;
    Ok((values, backend.upload(Shape::new(batch, r, k), &rows)?))
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
