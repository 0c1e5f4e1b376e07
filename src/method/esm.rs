//! Essential Subspace Merging: the static merge of one layer (paper 1, section 3; paper 2, section 3).

use super::esd::{EssentialSubspace, Inputs, code_padded_norm, essential_subspace};
use super::{Decomposition, EsmOptions, Fusion, Scale, Solver, TaskNorm, join_batches};
use crate::backend::{Backend, Op, Result, Shape, Tensor};
use crate::linalg::{polar, qr_rows};

/// Rank-r factors `dW_t ~ E_t A_t` of T tasks, `A_t = E_t^T dW_t`. Where the inputs show `m < r` directions at most, the
/// others, rows of zeros, are left out.
pub struct TaskFactors<T> {
    /// Bases `E_t^T` (`T x m x d_out`), r eigenvalues each, and the energy they keep.
    pub subspace: EssentialSubspace<T>,
    /// `A_t`, `T x m x d_in`.
    pub projected: T,
    /// `n_t`, by the norm that the options name.
    pub task_norms: Vec<f64>,
}

/// The two concatenations, scaled.
pub struct Concatenation<T> {
    /// `E_cat^T`, `1 x mT x d_out`; the `(r - m) T` null directions are left out.
    pub e_cat: T,
    /// `A_cat`, `1 x mT x d_in`, after all scalings.
    pub a_cat: T,
    /// `w_t`, r for each task.
    pub weights: Vec<Vec<f64>>,
    /// `s_t`.
    pub task_scales: Vec<f64>,
    /// `c`, `1 x 1 x d_in`; none if the scaling is off.
    pub column_scales: Option<T>,
}

/// The merged layer.
pub struct EsmLayer<T> {
    /// `dW`, `1 x d_out x d_in`, before inter-layer scaling and alpha.
    pub delta: T,
    /// `n_t`.
    pub task_norms: Vec<f64>,
    /// `s_t`.
    pub task_scales: Vec<f64>,
    /// Share of each task's output shift kept by its r directions.
    pub energy_retention: Vec<f64>,
    /// Whether a concatenation was rank-deficient, so that its polar factor came from the host in f64.
    pub rank_deficient: bool,
}

/// Merges one layer: `deltas` is `T x d_out x d_in`, `rank` the directions of a task.
pub async fn esm_layer<B: Backend>(
    backend: &B,
    deltas: &B::Tensor,
    inputs: &Inputs<B::Tensor>,
    rank: usize,
    options: &EsmOptions,
    solver: Solver,
) -> Result<EsmLayer<B::Tensor>> {
    let factors = task_factors(backend, deltas, inputs, rank, options, solver).await?;
    merge_factors(backend, factors, options, solver).await
}

/// The first half, independent between tasks: a large layer can pass its tasks a few at a time.
pub async fn task_factors<B: Backend>(
    backend: &B,
    deltas: &B::Tensor,
    inputs: &Inputs<B::Tensor>,
    rank: usize,
    options: &EsmOptions,
    solver: Solver,
) -> Result<TaskFactors<B::Tensor>> {
    let found = match options.fusion {
        Fusion::Qr => rank, // whether it makes rows or columns orthonormal hangs on the number of rows
        _ => directions(deltas.shape(), inputs, options.decomposition, rank),
    };
    let mut subspace =
        essential_subspace(backend, deltas, inputs, options.decomposition, found, solver).await?;
    subspace.eigenvalues.iter_mut().for_each(|values| values.resize(rank, 0.0));
    let projected = backend.matmul(&subspace.basis, Op::None, deltas, Op::None)?;
    let task_norms = match options.inter_task_norm {
        TaskNorm::Full => frobenius_norms(backend, deltas).await?,
        TaskNorm::Truncated => frobenius_norms(backend, &projected).await?,
        TaskNorm::CodePadded => {
            let Shape { batch: tasks, rows, cols } = deltas.shape();
            let mut norms = Vec::with_capacity(tasks);
            for t in 0..tasks {
                let delta = backend.slice(deltas, t..t + 1, 0..rows, 0..cols)?;
                norms.push(code_padded_norm(backend, &delta, inputs, t, options.decomposition).await?);
            }
            norms
        }
    };
    Ok(TaskFactors { subspace, projected, task_norms })
}

/// The most directions that any task's inputs can show, at most `rank`: few tokens, or few input dimensions, leave the rest
/// null.
fn directions<T>(deltas: Shape, inputs: &Inputs<T>, decomposition: Decomposition, rank: usize) -> usize {
    let most = |t| match decomposition {
        Decomposition::Esd => inputs.rank(t, deltas.rows, deltas.cols),
        Decomposition::Svd => deltas.rows.min(deltas.cols),
    };
    (0..deltas.batch).map(most).max().unwrap_or(rank).clamp(1, rank.max(1))
}

/// Puts together the factors of the same layer for several groups of tasks, in order.
pub fn join_factors<B: Backend>(
    backend: &B,
    parts: Vec<TaskFactors<B::Tensor>>,
) -> Result<TaskFactors<B::Tensor>> {
    let (mut bases, mut projections, mut task_norms) = (vec![], vec![], vec![]);
    let (mut eigenvalues, mut energy_retention) = (vec![], vec![]);
    for part in parts {
        bases.push(part.subspace.basis);
        projections.push(part.projected);
        task_norms.extend(part.task_norms);
        eigenvalues.extend(part.subspace.eigenvalues);
        energy_retention.extend(part.subspace.energy_retention);
    }
    let basis = join_batches(backend, bases)?;
    let projected = join_batches(backend, projections)?;
    Ok(TaskFactors {
        subspace: EssentialSubspace { basis, eigenvalues, energy_retention },
        projected,
        task_norms,
    })
}

/// The second half: scales, concatenates, orthogonalises and multiplies.
pub async fn merge_factors<B: Backend>(
    backend: &B,
    factors: TaskFactors<B::Tensor>,
    options: &EsmOptions,
    solver: Solver,
) -> Result<EsmLayer<B::Tensor>> {
    let energy_retention = factors.subspace.energy_retention.clone();
    let task_norms = factors.task_norms.clone();
    let directions = factors.subspace.eigenvalues.iter().map(Vec::len).sum();
    let cat = concatenate(backend, factors, options)?;
    let e = orthogonalize(backend, cat.e_cat, directions, options, solver).await?;
    let a = orthogonalize(backend, cat.a_cat, directions, options, solver).await?;
    let gain = (options.gain * e.mean_sigma * a.mean_sigma) as f32;
    let mut delta = backend.zeros(Shape::matrix(e.factor.shape().cols, a.factor.shape().cols))?;
    backend.gemm(gain, &e.factor, Op::Transpose, &a.factor, Op::None, 0.0, &mut delta)?;
    let rank_deficient = e.rank_deficient || a.rank_deficient;
    Ok(EsmLayer { delta, task_norms, task_scales: cat.task_scales, energy_retention, rank_deficient })
}

/// Eigenvalue weighting (paper 2): `w_j = (lambda_j / mean lambda)^power`, then `w / mean w`. All ones for power 0, null
/// directions included; all zeros for a task without any shift.
pub fn eigenvalue_weights(eigenvalues: &[f64], power: f64) -> Vec<f64> {
    if power == 0.0 {
        return vec![1.0; eigenvalues.len()];
    }
    let mean_is_one = |values: &[f64]| Scale::of(Some(Scale { exponent: 1.0, ..Scale::default() }), values);
    mean_is_one(&Scale::of(Some(Scale { exponent: power, ..Scale::default() }), eigenvalues))
}

/// `E~_t = E_t diag(w_t)` and `A~_t = s_t diag(w_t) A_t` with `s_t = (n_t / mean n)^2`, concatenated over the tasks; then
/// `A_cat <- A_cat diag(c)` with `c_j = (||A_cat[:, j]|| / mean_j ||A_cat[:, j]||)^2`.
pub fn concatenate<B: Backend>(
    backend: &B,
    factors: TaskFactors<B::Tensor>,
    options: &EsmOptions,
) -> Result<Concatenation<B::Tensor>> {
    let TaskFactors { subspace, mut projected, task_norms } = factors;
    let EssentialSubspace { mut basis, eigenvalues, .. } = subspace;
    let Shape { batch: tasks, rows: found, cols: d_out } = basis.shape();
    let d_in = projected.shape().cols;
    let weights: Vec<Vec<f64>> =
        eigenvalues.iter().map(|l| eigenvalue_weights(l, options.eigen_weight_power)).collect();
    let task_scales = Scale::of(options.inter_task, &task_norms);

    let column = |values: Vec<f32>| backend.upload(Shape::new(tasks, found, 1), &values);
    let own = weights.iter().flat_map(|w| w[..found].iter().map(|&w| w as f32)).collect();
    backend.scale_rows(&mut basis, &column(own)?)?;
    let both = weights.iter().zip(&task_scales);
    let both = both.flat_map(|(w, &s)| w[..found].iter().map(move |w| (w * s) as f32)).collect();
    backend.scale_rows(&mut projected, &column(both)?)?;

    let e_cat = basis.reshape(Shape::matrix(tasks * found, d_out))?;
    let mut a_cat = projected.reshape(Shape::matrix(tasks * found, d_in))?;
    let column_scales = match options.inter_dimension {
        Some(scale) => Some(inter_dimension_scaling(backend, &mut a_cat, scale)?),
        None => None,
    };
    Ok(Concatenation { e_cat, a_cat, weights, task_scales, column_scales })
}

/// `A_cat <- A_cat diag(c)`, `c_j = (||A_cat[:, j]|| / mean_j ||A_cat[:, j]||)^2`; returns `c`.
fn inter_dimension_scaling<B: Backend>(
    backend: &B,
    a_cat: &mut B::Tensor,
    scale: Scale,
) -> Result<B::Tensor> {
    let mut c = backend.column_norms(a_cat)?;
    backend.polarize(&mut c, scale.exponent as f32, scale.polarity)?;
    backend.scale_columns(a_cat, &c)?;
    Ok(c)
}

/// One concatenation, ready to be multiplied.
struct Orthogonalized<T> {
    factor: T,
    mean_sigma: f64,
    rank_deficient: bool,
}

/// `polar(M)` and `mean(S)` over the thin dimension (or what `fusion` asks for); `m` is one matrix, of `directions` rows with
/// those that are null and left out.
async fn orthogonalize<B: Backend>(
    backend: &B,
    m: B::Tensor,
    directions: usize,
    options: &EsmOptions,
    solver: Solver,
) -> Result<Orthogonalized<B::Tensor>> {
    if options.fusion == Fusion::Concat {
        return Ok(Orthogonalized { factor: m, mean_sigma: 1.0, rank_deficient: false });
    }
    let thin = directions.min(m.shape().cols) as f64;
    let nearest = polar(backend, &m, solver.accuracy).await?;
    let mean_sigma = if options.mean_sigma { nearest.nuclear_norms[0] / thin } else { 1.0 };
    let factor = match options.fusion {
        Fusion::Qr => qr_rows(backend, &m).await?,
        _ => nearest.factor,
    };
    Ok(Orthogonalized { factor, mean_sigma, rank_deficient: nearest.rank_deficient[0] })
}

async fn frobenius_norms<B: Backend>(backend: &B, x: &B::Tensor) -> Result<Vec<f64>> {
    let norms = backend.download(&backend.frobenius_norms(x)?).await?;
    Ok(norms.iter().map(|&v| f64::from(v)).collect())
}
