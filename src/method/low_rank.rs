//! Merging in the core space of low-rank differences (arXiv 2509.17786): `dW_t = B_t A_t` of T adapters of a layer are merged by any
//! method, and the result comes as a product again, without any matrix of the layer's size.
//!
//! `B_t = Q_t^T R_t` with orthonormal rows `Q_t` (`r x d_out`) makes `dW_t = Q_t^T K_t`, with a core `K_t = R_t A_t` (`r x d_in`). What
//! methods decompose are outer products over the inputs, `dW G dW^T = Q^T (K G K^T) Q`: their bases are those of the core, lifted by `Q`.

use super::esd::Inputs;
use super::esm::{merge_factors_apart, task_factors};
use super::esm_plus::low_rank_experts;
use super::held::Held;
use super::tsv::{TaskTriples, merge_triples_apart, task_triples};
use super::{Decomposition, EsmOptions, MergedFactors, MergedLayer, Solver, Streamed};
use crate::backend::{Backend, Op, Result, Shape, Tensor};
use crate::linalg::{Accuracy, SymmetricProduct, leading_eigenpairs, orthonormalize_rows, qr_rows};

/// `dW_t = Q_t^T K_t` of T tasks.
pub struct Cores<T> {
    /// `Q_t`, `T x r x d_out`: orthonormal rows.
    pub q: T,
    /// `K_t`, `T x r x d_in`.
    pub k: T,
}

/// Rounds of CholeskyQR that hold for factors of any condition.
const PASSES: usize = 3;

impl<T: Tensor> Cores<T> {
    /// Of `dW_t = B_t A_t`; `b` holds `B_t^T` (`T x r x d_out`), `a` `A_t` (`T x r x d_in`).
    pub async fn new<B: Backend<Tensor = T>>(backend: &B, b: &T, a: &T, accuracy: Accuracy) -> Result<Self> {
        let Shape { batch, rows: r, cols: d_out } = b.shape();
        if r >= d_out {
            let k = backend.matmul(b, Op::Transpose, a, Op::None)?;
            return Ok(Cores { q: identities(backend, batch, d_out)?, k });
        }
        let q = orthonormal(backend, b, accuracy).await?;
        let overlap = backend.matmul(&q, Op::None, b, Op::Transpose)?;
        Ok(Cores { k: backend.matmul(&overlap, Op::None, a, Op::None)?, q })
    }

    fn tasks(&self) -> usize {
        self.k.shape().batch
    }

    /// Bases in the core (`T x m x r`) as bases of outputs.
    fn lifted<B: Backend<Tensor = T>>(&self, backend: &B, basis: &T) -> Result<T> {
        backend.matmul(basis, Op::None, &self.q, Op::None)
    }

    /// `sum_t c_t dW_t`
    pub fn sum<B: Backend<Tensor = T>>(&self, backend: &B, coefficients: &[f64]) -> Result<MergedFactors<T>> {
        let Shape { batch, rows: r, cols: d_in } = self.k.shape();
        let coefficients: Vec<f32> = coefficients.iter().map(|&c| c as f32).collect();
        let mut a = backend.duplicate(&self.k)?;
        backend.scale_batches(&mut a, &backend.upload(Shape::new(batch, 1, 1), &coefficients)?)?;
        let b = backend.duplicate(&self.q)?.reshape(Shape::matrix(batch * r, self.q.shape().cols))?;
        Ok(MergedFactors {
            b,
            a: a.reshape(Shape::matrix(batch * r, d_in))?,
            layers: vec![MergedLayer::default()],
        })
    }

    /// TSV-M with a budget of so many triples a task.
    pub async fn tsv_m<B: Backend<Tensor = T>>(
        &self,
        backend: &B,
        budget: usize,
        mean_sigma: bool,
        solver: Solver,
    ) -> Result<MergedFactors<T>> {
        let Shape { rows: r, cols: d_in, .. } = self.k.shape();
        let triples = task_triples(backend, &self.k, budget.min(r).min(d_in), solver).await?;
        let triples = TaskTriples { u: self.lifted(backend, &triples.u)?, ..triples };
        merge_triples_apart(backend, triples, (self.tasks(), budget), mean_sigma, solver).await
    }

    /// ESM with a budget of so many directions a task.
    pub async fn esm<B: Backend<Tensor = T>>(
        &self,
        backend: &B,
        inputs: &Inputs<T>,
        budget: usize,
        options: &EsmOptions,
        solver: Solver,
    ) -> Result<MergedFactors<T>> {
        let mut factors = task_factors(backend, &self.k, inputs, budget, options, solver).await?;
        factors.subspace.basis = self.lifted(backend, &factors.subspace.basis)?;
        merge_factors_apart(backend, factors, self.tasks(), options, solver).await
    }

    /// Compress-then-Merge (arXiv 2606.03723), its first half: all tasks in shared subspaces of `r` directions, `U_r` of outputs and
    /// `V_r` of inputs, by a Tucker-2 decomposition of the differences, each scaled to the norm `beta ||dW_t|| + (1 - beta) mean`.
    pub async fn compressed<B: Backend<Tensor = T>>(
        &self,
        backend: &B,
        r: usize,
        solver: Solver,
    ) -> Result<Compressed<T>> {
        let (Shape { batch: tasks, rows, cols: d_in }, d_out) = (self.k.shape(), self.q.shape().cols);
        // rows of all tasks, one below the other
        let q = backend.duplicate(&self.q)?.reshape(Shape::matrix(tasks * rows, d_out))?;
        let k = backend.duplicate(&self.k)?.reshape(Shape::matrix(tasks * rows, d_in))?;
        let u = basis_of(backend, backend.duplicate(&q)?, solver.accuracy).await?;
        let v = basis_of(backend, backend.duplicate(&k)?, solver.accuracy).await?;
        let (wide, deep) = (u.shape().rows, v.shape().rows);
        // M_t = (Q_t U^T)^T (K_t V^T)
        let left = backend.matmul(&q, Op::None, &u, Op::Transpose)?.reshape(Shape::new(tasks, rows, wide))?;
        let right =
            backend.matmul(&k, Op::None, &v, Op::Transpose)?.reshape(Shape::new(tasks, rows, deep))?;
        drop((q, k));
        let cores = backend.matmul(&left, Op::Transpose, &right, Op::None)?;
        let tucker = Tucker { wide, deep, r: r.min(wide).min(deep) };
        let (u_r, v_r) = tucker.solve(backend, &levelled(backend, &cores).await?).await?;
        let left = backend.matmul(&repeated(backend, &u_r, tasks)?, Op::None, &cores, Op::None)?;
        Ok(Compressed {
            o: backend.matmul(&left, Op::None, &repeated(backend, &v_r, tasks)?, Op::Transpose)?,
            u: backend.matmul(&u_r, Op::None, &u, Op::None)?,
            v: backend.matmul(&v_r, Op::None, &v, Op::None)?,
        })
    }
}

/// Differences of T tasks in shared subspaces of `r` directions: `dW_t` is near `U^T O_t V`.
pub struct Compressed<T> {
    /// `U_r^T`, `1 x r x d_out`: orthonormal rows, singular vectors of the differences along the inputs' subspace.
    pub u: T,
    /// `V_r^T`, `1 x r x d_in`, likewise.
    pub v: T,
    /// `O_t = U_r^T dW_t V_r` of the differences as they are, `T x r x r`.
    pub o: T,
}

impl<T: Tensor> Compressed<T> {
    /// As cores of all inputs, for methods that have a form on them.
    pub fn cores<B: Backend<Tensor = T>>(&self, backend: &B) -> Result<Cores<T>> {
        let tasks = self.o.shape().batch;
        Ok(Cores {
            q: repeated(backend, &self.u, tasks)?,
            k: backend.matmul(&self.o, Op::None, &repeated(backend, &self.v, tasks)?, Op::None)?,
        })
    }

    /// Merged entry by entry of the `O_t`.
    pub async fn elementwise<B: Backend<Tensor = T>>(
        &self,
        backend: &B,
        method: &Streamed,
    ) -> Result<MergedFactors<T>> {
        let Shape { rows, cols, .. } = self.o.shape();
        let mut held = Held::rows(backend, backend.duplicate(&self.o)?)?;
        let learned = method.learn::<B, _>(backend, &mut held).await?;
        let o =
            method.apply(backend, &learned, held.into_slab()).await?.reshape(Shape::matrix(rows, cols))?;
        Ok(MergedFactors {
            b: backend.duplicate(&self.u)?,
            a: backend.matmul(&o, Op::None, &self.v, Op::None)?,
            layers: vec![MergedLayer::default()],
        })
    }
}

/// The merged difference `B A` of one layer cut to `r` directions.
pub struct Truncated<T> {
    /// `B^T`, `1 x r x d_out`: orthonormal rows.
    pub b: T,
    /// `A`, `1 x r x d_in`.
    pub a: T,
    /// `||B A||_F` before, `1 x 1 x 1`.
    pub norm: T,
    /// The share of its square that is kept.
    pub energy_retention: f64,
}

/// The best approximation of rank `r` of `dW = B A`, `1 x s x d_out` and `1 x s x d_in`.
pub async fn truncated<B: Backend>(
    backend: &B,
    merged: &MergedFactors<B::Tensor>,
    r: usize,
    solver: Solver,
) -> Result<Truncated<B::Tensor>> {
    let cores = Cores::new(backend, &merged.b, &merged.a, solver.accuracy).await?;
    let found = low_rank_experts(backend, &cores.k, &Inputs::DataFree, Decomposition::Svd, r, solver).await?;
    Ok(Truncated {
        b: cores.lifted(backend, &found.b)?,
        a: found.a,
        norm: backend.frobenius_norms(&cores.k)?,
        energy_retention: found.energy_retention.first().copied().unwrap_or(0.0),
    })
}

/// The same of a matrix, `1 x d_out x d_in`.
pub async fn truncated_whole<B: Backend>(
    backend: &B,
    delta: &B::Tensor,
    r: usize,
    solver: Solver,
) -> Result<Truncated<B::Tensor>> {
    let found = low_rank_experts(backend, delta, &Inputs::DataFree, Decomposition::Svd, r, solver).await?;
    Ok(Truncated {
        b: found.b,
        a: found.a,
        norm: backend.frobenius_norms(delta)?,
        energy_retention: found.energy_retention.first().copied().unwrap_or(0.0),
    })
}

/// One basis of the outputs of all tasks, `U` (`1 x R x d_out`), and the differences in it, `T x R x d_in`: `dW_t = U^T K_t`.
pub async fn shared<B: Backend>(
    backend: &B,
    cores: &Cores<B::Tensor>,
    accuracy: Accuracy,
) -> Result<(B::Tensor, B::Tensor)> {
    let Shape { batch: tasks, rows, cols: d_out } = cores.q.shape();
    let all = backend.duplicate(&cores.q)?.reshape(Shape::matrix(tasks * rows, d_out))?;
    let u = basis_of(backend, all, accuracy).await?;
    let overlap = backend.matmul(&repeated(backend, &u, tasks)?, Op::None, &cores.q, Op::Transpose)?;
    let k = backend.matmul(&overlap, Op::None, &cores.k, Op::None)?;
    Ok((u, k))
}

/// Orthonormal rows that span those of `x`, which has fewer rows than columns.
async fn orthonormal<B: Backend>(backend: &B, x: &B::Tensor, accuracy: Accuracy) -> Result<B::Tensor> {
    match accuracy {
        Accuracy::Exact => qr_rows(backend, x).await,
        // rows of unit size first, so that none is lost beside a larger one
        Accuracy::Balanced | Accuracy::Fast => {
            let mut unit = backend.duplicate(x)?;
            backend.divide_rows(&mut unit, &backend.row_norms(x)?)?;
            orthonormalize_rows(backend, unit, PASSES)
        }
    }
}

/// The same, or all of the space where there are as many rows.
async fn basis_of<B: Backend>(backend: &B, x: B::Tensor, accuracy: Accuracy) -> Result<B::Tensor> {
    let Shape { batch, rows, cols } = x.shape();
    if rows >= cols { identities(backend, batch, cols) } else { orthonormal(backend, &x, accuracy).await }
}

fn identities<B: Backend>(backend: &B, batch: usize, n: usize) -> Result<B::Tensor> {
    let values: Vec<f32> = (0..batch * n * n).map(|i| f32::from((i / n) % n == i % n)).collect();
    backend.upload(Shape::new(batch, n, n), &values)
}

/// One matrix, once for each task.
fn repeated<B: Backend>(backend: &B, x: &B::Tensor, tasks: usize) -> Result<B::Tensor> {
    let Shape { rows, cols, .. } = x.shape();
    let mut all = backend.zeros(Shape::new(tasks, rows, cols))?;
    backend.axpby(1.0, x, 0.0, &mut all)?;
    Ok(all)
}

/// The share of its own norm that a difference keeps where norms are levelled.
const BETA: f64 = 0.25;

/// Each matrix scaled to the norm `beta n_t + (1 - beta) mean n`; one of norm 0 stays.
async fn levelled<B: Backend>(backend: &B, cores: &B::Tensor) -> Result<B::Tensor> {
    let norms = backend.download(&backend.frobenius_norms(cores)?).await?;
    let mean = norms.iter().map(|&n| f64::from(n)).sum::<f64>() / norms.len().max(1) as f64;
    let scale = |&n: &f32| if n > 0.0 { (BETA + (1.0 - BETA) * mean / f64::from(n)) as f32 } else { 0.0 };
    let scales: Vec<f32> = norms.iter().map(scale).collect();
    let mut levelled = backend.duplicate(cores)?;
    backend.scale_batches(&mut levelled, &backend.upload(Shape::new(norms.len(), 1, 1), &scales)?)?;
    Ok(levelled)
}

/// Most rounds of alternation, and how far a round moves a direction, root mean square, where it has converged: little enough that
/// one round more or less, which rounding may decide, makes no difference.
const ROUNDS: usize = 60;
const CONVERGED: f64 = 2e-6;

/// Tucker-2 of T matrices `M_t` (`wide x deep`): orthonormal rows `U` and `V`, `r` each, that keep most of `sum ||U M_t V^T||^2`.
struct Tucker {
    wide: usize,
    deep: usize,
    r: usize,
}

impl Tucker {
    /// From the leading singular vectors of both unfoldings (HOSVD), by alternation; singular vectors of what the other side sees.
    ///
    /// A half of a round is a step of orthogonal iteration, `U <- orth(U C)` with `C` of what `V` sees, which costs no decomposition
    /// and loses no energy: it makes most of the linear bound of `tr(U C U^T)`, and rests where the singular vectors do.
    async fn solve<B: Backend>(&self, backend: &B, m: &B::Tensor) -> Result<(B::Tensor, B::Tensor)> {
        // below each other the rows of all M_t are those of one matrix, whose right singular vectors are wanted
        let stacked = backend.duplicate(m)?.reshape(Shape::matrix(m.shape().batch * self.wide, self.deep))?;
        let mut v = self.leading(backend, &stacked).await?;
        let mut u = self.leading(backend, &self.seen_by(backend, &v, m, Op::Transpose)?).await?;
        for _ in 0..ROUNDS {
            let before = v;
            v = towards_leading(backend, &self.seen_by(backend, &u, m, Op::None)?, &before).await?;
            u = towards_leading(backend, &self.seen_by(backend, &v, m, Op::Transpose)?, &u).await?;
            let overlap = backend.matmul(&v, Op::None, &before, Op::Transpose)?;
            let mut moved = backend.duplicate(&v)?;
            backend.gemm(-1.0, &overlap, Op::None, &before, Op::None, 1.0, &mut moved)?;
            let moved = backend.download(&backend.frobenius_norms(&moved)?).await?;
            if moved.iter().all(|&moved| f64::from(moved) <= CONVERGED * (self.r as f64).sqrt()) {
                break;
            }
        }
        u = self.leading(backend, &self.seen_by(backend, &v, m, Op::Transpose)?).await?;
        v = self.leading(backend, &self.seen_by(backend, &u, m, Op::None)?).await?;
        Ok((u, v))
    }

    /// `W M_t` or `W M_t^T` of all tasks, below each other: rows of the space of the other side.
    fn seen_by<B: Backend>(&self, backend: &B, w: &B::Tensor, m: &B::Tensor, op: Op) -> Result<B::Tensor> {
        let tasks = m.shape().batch;
        let seen = backend.matmul(&repeated(backend, w, tasks)?, Op::None, m, op)?;
        let cols = seen.shape().cols;
        seen.reshape(Shape::matrix(tasks * self.r, cols))
    }

    /// The leading right singular vectors of a matrix as rows.
    async fn leading<B: Backend>(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let Shape { rows, cols, .. } = x.shape();
        let product = SymmetricProduct::Factor { x, op: Op::Transpose };
        let pairs =
            leading_eigenpairs(backend, product, self.r, &[rows.min(cols)], Accuracy::Exact, 0).await?;
        Ok(pairs.basis)
    }
}

/// `orth(W X^T X)`: a step of orthogonal iteration towards the leading right singular vectors of `X`.
async fn towards_leading<B: Backend>(backend: &B, x: &B::Tensor, w: &B::Tensor) -> Result<B::Tensor> {
    let along = backend.matmul(w, Op::None, x, Op::Transpose)?;
    orthonormal(backend, &backend.matmul(&along, Op::None, x, Op::None)?, Accuracy::Balanced).await
}
