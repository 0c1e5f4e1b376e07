//! TSV-M: Task Singular Vectors merging (Gargiulo et al., CVPR 2025, arXiv 2412.00081).

use super::{Solver, join_batches};
use crate::backend::{Backend, Op, Result, Shape, Tensor};
use crate::linalg::{SymmetricProduct, leading_eigenpairs, polar};

/// The k leading singular triples of T tasks.
pub struct TaskTriples<T> {
    /// Left singular vectors as rows, `T x k x d_out`.
    pub u: T,
    /// Right singular vectors as rows, `T x k x d_in`.
    pub v: T,
    /// Singular values, k for each task, descending.
    pub sigma: Vec<f32>,
    /// Share of `||dW_t||_F^2` that the triples keep, for each task.
    pub energy_retention: Vec<f64>,
}

/// A layer merged by TSV-M.
pub struct TsvLayer<T> {
    /// `dW`, `1 x d_out x d_in`.
    pub delta: T,
    /// Share of `||dW_t||_F^2` kept by the k leading singular triples, for each task.
    pub energy_retention: Vec<f64>,
    /// Whether a concatenation was rank-deficient.
    pub rank_deficient: bool,
}

/// TSV-M of one layer; `deltas` is `T x d_out x d_in`. The product is multiplied by the mean singular values of both
/// concatenations if `mean_sigma`.
pub async fn tsv_m<B: Backend>(
    backend: &B,
    deltas: &B::Tensor,
    mean_sigma: bool,
    solver: Solver,
) -> Result<TsvLayer<B::Tensor>> {
    let Shape { batch: tasks, rows: d_out, cols: d_in } = deltas.shape();
    let triples = task_triples(backend, deltas, rank_budget(d_out, d_in, tasks), solver).await?;
    merge_triples(backend, vec![triples], mean_sigma, solver).await
}

/// The triples kept of a task, `k = max(1, floor(min(d_out, d_in) / T))`.
pub fn rank_budget(d_out: usize, d_in: usize, tasks: usize) -> usize {
    (d_out.min(d_in) / tasks.max(1)).max(1)
}

/// The first half, independent between tasks: `dW_t ~ U_t diag(S_t) V_t^T`. `U` and `S^2` are the leading eigenpairs of
/// `dW dW^T`; `V^T = S^(-1) U^T dW`, null triples zero.
pub async fn task_triples<B: Backend>(
    backend: &B,
    deltas: &B::Tensor,
    k: usize,
    solver: Solver,
) -> Result<TaskTriples<B::Tensor>> {
    let Shape { batch: tasks, rows: d_out, cols: d_in } = deltas.shape();
    let ranks = vec![d_out.min(d_in); tasks];
    let c = SymmetricProduct::Factor { x: deltas, op: Op::None };
    let left =
        leading_eigenpairs(backend, c, k, &ranks, solver.accuracy, (solver.seed, solver.stream)).await?;
    let sigma: Vec<f32> = left.values.iter().flatten().map(|l| l.sqrt() as f32).collect();
    let mut v = backend.matmul(&left.basis, Op::None, deltas, Op::None)?;
    backend.divide_rows(&mut v, &backend.upload(Shape::new(tasks, k, 1), &sigma)?)?;
    let energy_retention = left.energy_retention();
    Ok(TaskTriples { u: left.basis, v, sigma, energy_retention })
}

/// The second half: `dW = polar(U_cat) diag(S_cat) polar(V_cat)`, over all tasks in order.
pub async fn merge_triples<B: Backend>(
    backend: &B,
    parts: Vec<TaskTriples<B::Tensor>>,
    mean_sigma: bool,
    solver: Solver,
) -> Result<TsvLayer<B::Tensor>> {
    let (mut us, mut vs, mut sigma, mut energy_retention) = (vec![], vec![], vec![], vec![]);
    for part in parts {
        us.push(part.u);
        vs.push(part.v);
        sigma.extend(part.sigma);
        energy_retention.extend(part.energy_retention);
    }
    let concatenated = |parts| -> Result<B::Tensor> {
        let all = join_batches(backend, parts)?;
        let cols = all.shape().cols;
        all.reshape(Shape::matrix(sigma.len(), cols))
    };
    let u = polar(backend, &concatenated(us)?, solver.accuracy).await?;
    let mut v = polar(backend, &concatenated(vs)?, solver.accuracy).await?;
    backend.scale_rows(&mut v.factor, &backend.upload(Shape::new(1, sigma.len(), 1), &sigma)?)?;

    let (d_out, d_in) = (u.factor.shape().cols, v.factor.shape().cols);
    let mean = |nuclear_norm: f64, d: usize| nuclear_norm / sigma.len().min(d) as f64;
    let scale =
        if mean_sigma { mean(u.nuclear_norms[0], d_out) * mean(v.nuclear_norms[0], d_in) } else { 1.0 };
    let mut delta = backend.zeros(Shape::matrix(d_out, d_in))?;
    backend.gemm(scale as f32, &u.factor, Op::Transpose, &v.factor, Op::None, 0.0, &mut delta)?;
    Ok(TsvLayer { delta, energy_retention, rank_deficient: u.rank_deficient[0] || v.rank_deficient[0] })
}
