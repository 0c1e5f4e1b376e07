//! TSV-M: Task Singular Vectors merging (Gargiulo et al., CVPR 2025, arXiv 2412.00081).

use super::Solver;
use crate::backend::{Backend, Op, Result, Shape, Tensor};
use crate::linalg::{SymmetricProduct, leading_eigenpairs, polar};

/// A layer merged by TSV-M.
pub struct TsvLayer<T> {
    /// `dW`, `1 x d_out x d_in`.
    pub delta: T,
    /// Share of `||dW_t||_F^2` kept by the k leading singular triples, for each task.
    pub energy_retention: Vec<f64>,
    /// Whether a concatenation was rank-deficient.
    pub rank_deficient: bool,
}

/// `dW = polar(U_cat) diag(S_cat) polar(V_cat)` from the `k = max(1, floor(min(d_out, d_in) / T))` leading singular triples
/// of every `dW_t`; times the mean singular values of both concatenations if `mean_sigma`. `deltas` is `T x d_out x d_in`.
pub async fn tsv_m<B: Backend>(
    backend: &B,
    deltas: &B::Tensor,
    mean_sigma: bool,
    solver: Solver,
) -> Result<TsvLayer<B::Tensor>> {
    let Shape { batch: tasks, rows: d_out, cols: d_in } = deltas.shape();
    let k = (d_out.min(d_in) / tasks.max(1)).max(1);
    let ranks = vec![d_out.min(d_in); tasks];
    let c = SymmetricProduct::Factor { x: deltas, op: Op::None };
    let left =
        leading_eigenpairs(backend, c, k, &ranks, solver.accuracy, (solver.seed, solver.stream)).await?;

    // V^T = S^(-1) U^T dW; null triples are zero
    let sigma: Vec<f32> = left.values.iter().flatten().map(|l| l.sqrt() as f32).collect();
    let mut right = backend.matmul(&left.basis, Op::None, deltas, Op::None)?;
    backend.divide_rows(&mut right, &backend.upload(Shape::new(tasks, k, 1), &sigma)?)?;

    let u_cat = left.basis.reshape(Shape::matrix(tasks * k, d_out))?;
    let v_cat = right.reshape(Shape::matrix(tasks * k, d_in))?;
    let u = polar(backend, &u_cat, solver.accuracy).await?;
    let mut v = polar(backend, &v_cat, solver.accuracy).await?;
    backend.scale_rows(&mut v.factor, &backend.upload(Shape::new(1, tasks * k, 1), &sigma)?)?;

    let mean = |nuclear_norm: f64, d: usize| nuclear_norm / (tasks * k).min(d) as f64;
    let scale =
        if mean_sigma { mean(u.nuclear_norms[0], d_out) * mean(v.nuclear_norms[0], d_in) } else { 1.0 };
    let mut delta = backend.zeros(Shape::matrix(d_out, d_in))?;
    backend.gemm(scale as f32, &u.factor, Op::Transpose, &v.factor, Op::None, 0.0, &mut delta)?;
    let kept =
        |values: &[f64], total: f64| if total > 0.0 { values.iter().sum::<f64>() / total } else { 0.0 };
    Ok(TsvLayer {
        delta,
        energy_retention: left.values.iter().zip(&left.traces).map(|(v, &total)| kept(v, total)).collect(),
        rank_deficient: u.rank_deficient[0] || v.rank_deficient[0],
    })
}
