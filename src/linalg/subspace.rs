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
    eigen::{self, SymmetricMatrix},
    host::{self, Matrix, SymmetricEigen, Threads, symmetric_eigen},
    orthonormalize_rows,
    standing::{By, Lengths, MOST_STEPS, Standing},
    unit::{UnitScaled, unit_scaled_gram},
};
use crate::backend::{Backend, Error, Op, Result, Shape, Tensor};

/// Vectors in the iterated block for `r` wanted ones: whole fours, as GPUs take them (`gemm_vec4`).
fn block_size(r: usize, accuracy: Accuracy) -> usize {
    (r + ((r as f64 * accuracy.effort().oversampling).ceil() as usize).max(8)).next_multiple_of(4)
}

/// Whether the block is small enough, against the matrix iterated on, for the iteration to beat a full decomposition, and leaves
/// enough of the rank out: the last eigenvalues of a matrix are far below those before them, where f32 sees little of them.
pub fn pays_off<T: Tensor>(
    c: &SymmetricProduct<'_, T>,
    r: usize,
    ranks: &[usize],
    accuracy: Accuracy,
) -> bool {
    let smaller = match c {
        SymmetricProduct::Factor { x, .. } => x.shape().rows.min(x.shape().cols),
        SymmetricProduct::Congruence { d, .. } => d.shape().rows,
    };
    block_size(r, accuracy) * 3 < smaller * 2 && ranks.iter().all(|&rank| r * 4 < rank * 3)
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
    let effort = accuracy.effort();
    let iteration =
        Iteration { wanted: r, block, steps: effort.iterations, tolerance: effort.tolerance, seed };
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
    /// `Q A`, and `Q` times the factor if it goes by that.
    fn times<B: Backend<Tensor = T>>(&self, backend: &B, q: &T, by: By) -> Result<(T, Option<T>)> {
        match (&self.factor, by) {
            (Some(Factor { values, side, .. }), By::Factor) => {
                let z = backend.matmul(q, Op::None, values, *side)?;
                let other = if *side == Op::None { Op::Transpose } else { Op::None };
                Ok((backend.matmul(&z, Op::None, values, other)?, Some(z)))
            }
            _ => Ok((backend.matmul(q, Op::None, &self.matrix, Op::None)?, None)),
        }
    }

    /// By an eigendecomposition of each in f64.
    async fn by_host<B: Backend<Tensor = T>>(&self, backend: &B, r: usize) -> Result<Found<T>> {
        let Some(Factor { values, side, in_range }) = &self.factor else {
            let (sigma, basis) = eigen::by_host(backend, SymmetricMatrix::Whole(&self.matrix), r).await?;
            return Ok(Found { basis, sigma });
        };
        let other = if *side == Op::None { Op::Transpose } else { Op::None };
        let op = if *in_range { *side } else { other };
        let (sigma, basis) = eigen::by_host(backend, SymmetricMatrix::Factor(values, op), r).await?;
        Ok(Found { basis, sigma })
    }

    /// Whether a decomposition in f64 is less work than a round of products of a block with the factor, where both are done by the same
    /// processor. One of order `n` takes `9 n^3` operations, which are four times as slow as products in f32, and its Gram matrix is made
    /// in f64, half as fast.
    fn is_quicker_by_host(&self, block: usize) -> bool {
        let n = self.matrix.shape().rows as f64;
        let other = self.factor.as_ref().map_or(0.0, |factor| factor.values.shape().matrix_len() as f64 / n);
        36.0 * n.powi(3) + 4.0 * n * n * other < (MOST_STEPS * 4 * block) as f64 * n * other
    }

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
    async fn found_in<B: Backend<Tensor = T>>(
        &self,
        backend: &B,
        q: T,
        r: usize,
        solver: Ritz,
    ) -> Result<Found<T>> {
        let Some(Factor { values, side, in_range }) = &self.factor else {
            let qa = backend.matmul(&q, Op::None, &self.matrix, Op::None)?;
            let h = backend.matmul(&q, Op::None, &qa, Op::Transpose)?;
            let (mut sigma, vectors) = ritz_vectors(backend, &h, r, solver).await?;
            to_roots(backend, &mut sigma)?;
            return Ok(Found { basis: backend.matmul(&vectors, Op::None, &q, Op::None)?, sigma });
        };
        // Z: what the factor maps the block to; H = Z Z^T
        let z = backend.matmul(&q, Op::None, values, *side)?;
        let h = backend.gram(&z, Op::None)?;
        let (_, vectors) = ritz_vectors(backend, &h, r, solver).await?;
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

/// Who solves projected problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ritz {
    /// In f32, to a few roundings of the largest eigenvalue.
    Device,
    /// In f64.
    Host,
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

/// What has been found of a batch.
struct Gathered<T> {
    batch: usize,
    found: Option<Found<T>>,
}

impl<T: Tensor> Gathered<T> {
    /// Takes members of another batch over: where they are there, and which they are here.
    fn put<B: Backend<Tensor = T>>(
        &mut self,
        backend: &B,
        other: &Found<T>,
        places: impl Iterator<Item = (usize, usize)>,
    ) -> Result<()> {
        let mut all = self.found.take().map_or_else(|| other.room_for(backend, self.batch), Ok)?;
        for (from, to) in places {
            all.take(backend, other, from, to)?;
        }
        self.found = Some(all);
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
    /// Of [`Standing::error`].
    tolerance: f64,
    /// Of the random start.
    seed: u64,
}

impl Iteration {
    /// Steps until the wanted directions of every member are found to the tolerance, each for those members alone that need it. The
    /// host waits once, and once more for every round of further steps. What no number of steps finds is decomposed in f64, and so is
    /// what would take products with the factor, where the host needs less time for that.
    async fn run<B: Backend>(&self, backend: &B, problem: Problem<B::Tensor>) -> Result<Found<B::Tensor>> {
        let mut rest = problem;
        let batch = rest.matrix.shape().batch;
        let mut q = self.start(backend, rest.matrix.shape())?;
        for step in 1..self.steps {
            // the first product may be nothing but the leading direction, as far as one round of CholeskyQR can tell
            let rounds = if step == 1 { 2 } else { 1 };
            q = orthonormalize_rows(backend, backend.matmul(&q, Op::None, &rest.matrix, Op::None)?, rounds)?;
        }
        let mut by = By::Gram;
        let mut whole = Gathered { batch, found: None };
        let mut which: Vec<usize> = (0..batch).collect(); // members of the whole that the rest are
        for round in 0.. {
            let Attempt { found, done, open, y } = self.attempt(backend, &rest, &q, by).await?;
            if open.is_empty() && whole.found.is_none() {
                return found.ok_or_else(nothing_found);
            }
            if let Some(found) = found {
                whole.put(backend, &found, done.iter().map(|&(from, member)| (from, which[member])))?;
            }
            let beyond_gram = |open: &Standing| rest.factor.is_some() && open.needs_factor(self.tolerance);
            let quicker = backend.is_the_host() && rest.is_quicker_by_host(self.block);
            let (for_host, open): (Vec<Standing>, Vec<Standing>) =
                open.into_iter().partition(|open| round == ROUNDS || quicker && beyond_gram(open));
            if !for_host.is_empty() {
                let chosen: Vec<usize> = for_host.iter().map(|open| open.member).collect();
                let found = rest.members(backend, &chosen)?.by_host(backend, self.wanted).await?;
                whole.put(backend, &found, chosen.iter().map(|&member| which[member]).enumerate())?;
            }
            if open.is_empty() {
                break;
            }
            if open.iter().any(beyond_gram) {
                by = By::Factor;
            }
            let chosen: Vec<usize> = open.iter().map(|open| open.member).collect();
            which = chosen.iter().map(|&member| which[member]).collect();
            rest = rest.members(backend, &chosen)?;
            q = self.further(
                backend,
                &rest,
                by,
                &open,
                members(backend, &q, &chosen)?,
                members(backend, &y, &chosen)?,
            )?;
        }
        whole.found.ok_or_else(nothing_found)
    }

    /// Further steps from a block `q` and what the matrix made of it, `y`.
    fn further<B: Backend>(
        &self,
        backend: &B,
        rest: &Problem<B::Tensor>,
        by: By,
        open: &[Standing],
        q: B::Tensor,
        y: B::Tensor,
    ) -> Result<B::Tensor> {
        let steps = open.iter().map(|open| open.power_steps(self.tolerance)).max().unwrap_or(1);
        let degrees: Option<Vec<usize>> = open.iter().map(|open| open.filter(self.tolerance)).collect();
        let wished = degrees.and_then(|degrees| degrees.into_iter().max()).unwrap_or(0);
        let degree = open.iter().map(Standing::highest_degree).fold(wished, usize::min);
        // a filter starts from `q`, and so has one product more to make
        if by == By::Gram && (2..steps).contains(&degree) {
            let unwanted: Vec<f64> = open.iter().map(|open| open.least).collect();
            let filtered = chebyshev::filter(backend, &rest.matrix, q, &unwanted, degree)?;
            return orthonormalize_rows(backend, filtered, 3);
        }
        let mut q = orthonormalize_rows(backend, y, 1)?;
        for _ in 1..steps {
            q = orthonormalize_rows(backend, rest.times(backend, &q, by)?.0, 1)?;
        }
        Ok(q)
    }

    /// One more power step, and what its block holds of the members whose wanted directions are found.
    ///
    /// Where the device solves the projected problems it is not kept waiting: it gets those of all members. On the host, which
    /// takes long for them, the residuals are looked at first.
    async fn attempt<B: Backend>(
        &self,
        backend: &B,
        problem: &Problem<B::Tensor>,
        q: &B::Tensor,
        by: By,
    ) -> Result<Attempt<B::Tensor>> {
        let (y, z) = problem.times(backend, q, by)?;
        let (lengths, outside) = (backend.row_norms(&y)?, backend.row_norms(&outside(backend, &y, q)?)?);
        let by_device = self.block <= backend.largest_eigenproblem();
        let solver = if by_device { Ritz::Device } else { Ritz::Host };
        let mut found = None;
        if by_device {
            let q = orthonormalize_rows(backend, backend.duplicate(&y)?, 2)?;
            found = Some(problem.found_in(backend, q, self.wanted, solver).await?);
        }
        let [lengths, outside] = backend.download_all([&lengths, &outside]).await?;
        let halfway = match &z {
            Some(z) => Some(backend.download(&backend.row_norms(z)?).await?),
            None => None,
        };
        let mapped = problem.factor.as_ref().is_some_and(|factor| !factor.in_range);
        let standing = |b: usize| {
            let rows = b * self.block..(b + 1) * self.block;
            let lengths = Lengths {
                product: &lengths[rows.clone()],
                outside: &outside[rows.clone()],
                halfway: halfway.as_deref().map(|z| &z[rows]),
            };
            Standing::new(b, self.wanted, &lengths, mapped)
        };
        let has_factor = problem.factor.is_some();
        let (good, open): (Vec<Standing>, Vec<Standing>) = (0..q.shape().batch)
            .map(standing)
            .partition(|standing| standing.accepted(self.tolerance, by, has_factor));
        let done: Vec<usize> = good.iter().map(|standing| standing.member).collect();
        if let Some(found) = found.as_mut().filter(|_| by_device) {
            let steep: Vec<usize> = good.iter().filter(|s| s.is_steep()).map(|s| s.member).collect();
            if !steep.is_empty() {
                let q = orthonormalize_rows(backend, members(backend, &y, &steep)?, 2)?;
                let part = problem.members(backend, &steep)?;
                let with_care = part.found_in(backend, q, self.wanted, Ritz::Host).await?;
                for (from, &to) in steep.iter().enumerate() {
                    found.take(backend, &with_care, from, to)?;
                }
            }
        }
        if by_device {
            return Ok(Attempt { found, done: done.into_iter().map(|b| (b, b)).collect(), open, y });
        }
        if open.is_empty() {
            let q = orthonormalize_rows(backend, backend.duplicate(&y)?, 2)?;
            found = Some(problem.found_in(backend, q, self.wanted, solver).await?);
        } else if !done.is_empty() {
            let q = orthonormalize_rows(backend, members(backend, &y, &done)?, 2)?;
            found = Some(problem.members(backend, &done)?.found_in(backend, q, self.wanted, solver).await?);
        }
        Ok(Attempt { found, done: done.into_iter().enumerate().collect(), open, y })
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
    open: Vec<Standing>,
    /// What the matrices made of the block.
    y: T,
}

/// Rounds of further steps, at most.
const ROUNDS: usize = 8;

fn nothing_found() -> Error {
    Error::Internal("a block was refused whatever its residual".into())
}

/// `Y - Y Q^T Q`, what of a product lies outside of the block.
fn outside<B: Backend>(backend: &B, y: &B::Tensor, q: &B::Tensor) -> Result<B::Tensor> {
    let h = backend.matmul(y, Op::None, q, Op::Transpose)?;
    let mut rest = backend.duplicate(y)?;
    backend.gemm(-1.0, &h, Op::None, q, Op::None, 1.0, &mut rest)?;
    Ok(rest)
}

/// Eigenpairs of member `b` of matrices `k x k`, in f64.
fn solve_on_host(matrices: &[f32], b: usize, k: usize, threads: Threads) -> Result<SymmetricEigen> {
    symmetric_eigen(&Matrix::widened(&matrices[b * k * k..(b + 1) * k * k], k, k, Op::None), threads)
}

/// The first `r` Ritz values of the projected matrices `h` (`batch x k x k`), `batch x 1 x r`, and as many Ritz vectors as
/// rows, `batch x r x k`.
async fn ritz_vectors<B: Backend>(
    backend: &B,
    h: &B::Tensor,
    r: usize,
    solver: Ritz,
) -> Result<(B::Tensor, B::Tensor)> {
    let Shape { batch, rows: k, .. } = h.shape();
    if solver == Ritz::Device {
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
