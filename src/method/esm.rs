//! Essential Subspace Merging: the static merge of layers of one shape (paper 1, section 3; paper 2, section 3).

use super::esd::{Inputs, code_padded_norm, pending_subspace};
use super::fusion::Concatenations;
use super::table::{Base, Calibration, Description, Kind, Parameter, Strength, special, word};
use super::{
    Decomposition, EsmOptions, Fusion, MergedFactors, MergedLayer, MergedLayers, Scale, Solver, TaskNorm,
    join_batches,
};
use crate::backend::{Backend, Op, Polarity, Result, Shape, Tensor};
use crate::linalg::{PendingEigenpairs, energy_retention};

/// `esm`
pub const METHOD: Description = Description {
    name: "esm",
    line: "Essential Subspace Merging: fuses what fine-tuning changed in the outputs of layers",
    formula: "C_t = dO_t^T dO_t / (n-1) of the output shifts dO_t = X_t dW_t^T; its r leading eigenvectors E_t, A_t = E_t^T dW_t;\n\
              dW = gain polar(E_cat) polar(A_cat) mean(S_E) mean(S_A), with polarized scaling between tasks, dimensions and layers;\n\
              W = b + alpha beta dW. Other matrices by tsv_m, the rest averaged",
    source: "CVPR 2026 (arXiv 2602.20208) and arXiv 2606.19164",
    kind: Kind::Esm,
    models: (1, usize::MAX),
    base: Base::Origin { listed: false },
    calibration: Calibration::OfExperts,
    strength: Strength::Required,
    parameters: PARAMETERS,
    example: "alpha: 0.8",
};

/// What ESM takes.
pub(super) const PARAMETERS: &[Parameter] = &[
    word("preset", &["esm", "esm-paper", "esm-cvpr", "esm-lm"], "which variant; the keys below override it"),
    special(
        "alpha_scope",
        "esm | all",
        "by preset",
        "whether alpha multiplies the layers merged by ESM, or all",
    ),
    word("decomposition", &["esd", "svd"], "directions of output shifts, or of the differences themselves"),
    word("fusion", &["polar", "qr", "concat"], "how the tasks' directions are made orthogonal"),
    special(
        "rank",
        "auto | a number | a fraction of d_out",
        "auto: floor(d_out / T)",
        "directions of a task",
    ),
    special("eigen_weight_power", "a number from 0", "by preset, 0.15 or 0", "weight of leading directions"),
    special("gain", "a number", "by preset, 2 or 1", "constant factor"),
    special("mean_sigma", "true or false", "by preset", "whether mean singular values multiply the product"),
    special("inter_task", SCALE, "by preset", "scaling between tasks"),
    special("inter_dimension", SCALE, "by preset", "scaling between input dimensions"),
    special("inter_layer", SCALE, "by preset", "scaling between layers of a kind"),
    special("inter_task_norm", "full | truncated | code_padded", "full", "the norm that inter_task compares"),
    special("fuse_qkv", "auto | true | false", "auto: by architecture", "whether q, k and v are one matrix"),
    special("layers", "patterns of tensors' names", "by architecture", "which tensors ESM merges"),
];

const SCALE: &str = "on | off | {exponent: 2, form: full}";

/// Rank-r factors `dW_t ~ E_t A_t` of T tasks in L layers, `A_t = E_t^T dW_t`. Where the inputs show `m < r` directions at
/// most, the others, rows of zeros, are left out.
pub struct TaskFactors<T> {
    /// Bases `E_t^T` (`LT x m x d_out`), and r singular values each.
    pub subspace: PendingEigenpairs<T>,
    /// `A_t`, `LT x m x d_in`.
    pub projected: T,
    /// `n_t`, by the norm that the options name, `LT x 1 x 1`.
    pub task_norms: T,
}

/// The two concatenations of L layers, scaled.
pub struct Concatenation<T> {
    /// `E_cat^T`, `L x mT x d_out`; the `(r - m) T` null directions are left out.
    pub e_cat: T,
    /// `A_cat`, `L x mT x d_in`, after all scalings.
    pub a_cat: T,
    /// `w_t`, `LT x 1 x r`.
    pub weights: T,
    /// `s_t`, `LT x 1 x 1`.
    pub task_scales: T,
    /// `c`, `L x 1 x d_in`; none if the scaling is off.
    pub column_scales: Option<T>,
    /// `n_t`, `LT x 1 x 1`.
    pub task_norms: T,
    /// Singular values of the output shifts, `LT x 1 x r`.
    pub sigma: T,
    /// Norms of the output shifts, `LT x 1 x 1`.
    pub norms: T,
}

/// Merges layers of one shape: `deltas` is `LT x d_out x d_in`, with the `tasks` of the first layer first, and `rank` the
/// directions of a task.
pub async fn esm_layers<B: Backend>(
    backend: &B,
    deltas: &B::Tensor,
    inputs: &Inputs<B::Tensor>,
    tasks: usize,
    rank: usize,
    options: &EsmOptions,
    solver: Solver,
) -> Result<MergedLayers<B::Tensor>> {
    let factors = task_factors(backend, deltas, inputs, rank, options, solver).await?;
    merge_factors(backend, factors, tasks, options, solver).await
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
        pending_subspace(backend, deltas, inputs, options.decomposition, found, solver).await?;
    subspace.sigma = padded_columns(backend, subspace.sigma, rank)?;
    let projected = backend.matmul(&subspace.basis, Op::None, deltas, Op::None)?;
    let task_norms = match options.inter_task_norm {
        TaskNorm::Full => backend.frobenius_norms(deltas)?,
        TaskNorm::Truncated => backend.frobenius_norms(&projected)?,
        TaskNorm::CodePadded => {
            let Shape { batch: tasks, rows, cols } = deltas.shape();
            let mut norms = Vec::with_capacity(tasks);
            for t in 0..tasks {
                let delta = backend.slice(deltas, t..t + 1, 0..rows, 0..cols)?;
                norms.push(code_padded_norm(backend, &delta, inputs, t, options.decomposition).await? as f32);
            }
            backend.upload(Shape::new(tasks, 1, 1), &norms)?
        }
    };
    Ok(TaskFactors { subspace, projected, task_norms })
}

/// `x` with columns of zeros up to `cols`.
fn padded_columns<B: Backend>(backend: &B, x: B::Tensor, cols: usize) -> Result<B::Tensor> {
    let shape = x.shape();
    if shape.cols == cols {
        return Ok(x);
    }
    let mut padded = backend.zeros(Shape { cols, ..shape })?;
    backend.copy_block(&x, [0, 0, 0], &mut padded, [0, 0, 0], [shape.batch, shape.rows, shape.cols])?;
    Ok(padded)
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

/// Puts together the factors of several groups of tasks, in order.
pub fn join_factors<B: Backend>(
    backend: &B,
    parts: Vec<TaskFactors<B::Tensor>>,
) -> Result<TaskFactors<B::Tensor>> {
    let (mut bases, mut projections, mut task_norms) = (vec![], vec![], vec![]);
    let (mut sigma, mut norms) = (vec![], vec![]);
    for part in parts {
        bases.push(part.subspace.basis);
        sigma.push(part.subspace.sigma);
        norms.push(part.subspace.norms);
        projections.push(part.projected);
        task_norms.push(part.task_norms);
    }
    let join = |parts| join_batches(backend, parts);
    let subspace = PendingEigenpairs { basis: join(bases)?, sigma: join(sigma)?, norms: join(norms)? };
    Ok(TaskFactors { subspace, projected: join(projections)?, task_norms: join(task_norms)? })
}

/// The second half: scales, concatenates, orthogonalises and multiplies. `factors` are those of `tasks` in each layer. The
/// host waits once, for all that it needs to know of all layers.
pub async fn merge_factors<B: Backend>(
    backend: &B,
    factors: TaskFactors<B::Tensor>,
    tasks: usize,
    options: &EsmOptions,
    solver: Solver,
) -> Result<MergedLayers<B::Tensor>> {
    let rank = factors.subspace.sigma.shape().cols;
    let cat = concatenate(backend, factors, tasks, options)?;
    let concatenations = cat.concatenations(tasks * rank, options, solver);
    let mut fused = concatenations.fuse(backend).await?;
    let [left, right] = &fused.checks;
    let facts = [left, right, &cat.sigma, &cat.norms, &cat.task_norms, &cat.task_scales];
    let [left, right, facts @ ..] = backend.download_all(facts).await?;
    let deficient = concatenations.mend(backend, &mut fused.deltas, [&left, &right]).await?;
    Ok(MergedLayers { deltas: fused.deltas, layers: merged_layers(facts, deficient, tasks, rank) })
}

/// [`merge_factors`] with the merged deltas left as products of [`Concatenations`]' two factors.
pub(super) async fn merge_factors_apart<B: Backend>(
    backend: &B,
    factors: TaskFactors<B::Tensor>,
    tasks: usize,
    options: &EsmOptions,
    solver: Solver,
) -> Result<MergedFactors<B::Tensor>> {
    let rank = factors.subspace.sigma.shape().cols;
    let cat = concatenate(backend, factors, tasks, options)?;
    let concatenations = cat.concatenations(tasks * rank, options, solver);
    let mut fused = concatenations.fuse_factors(backend).await?;
    let [left, right] = &fused.checks;
    let facts = [left, right, &cat.sigma, &cat.norms, &cat.task_norms, &cat.task_scales];
    let [left, right, facts @ ..] = backend.download_all(facts).await?;
    let deficient = concatenations.mend_factors(backend, &mut fused, [&left, &right]).await?;
    let layers = merged_layers(facts, deficient, tasks, rank);
    Ok(MergedFactors { b: fused.left, a: fused.right, layers })
}

impl<T> Concatenation<T> {
    fn concatenations(
        &self,
        directions: usize,
        options: &EsmOptions,
        solver: Solver,
    ) -> Concatenations<'_, T> {
        Concatenations {
            left: &self.e_cat,
            right: &self.a_cat,
            weights: None,
            directions,
            fusion: options.fusion,
            mean_sigma: options.mean_sigma,
            gain: options.gain,
            accuracy: solver.accuracy,
        }
    }
}

/// What layers were like, by the sigma, norms, task norms and task scales of [`Concatenation`].
fn merged_layers(facts: [Vec<f32>; 4], deficient: Vec<bool>, tasks: usize, rank: usize) -> Vec<MergedLayer> {
    let [sigma, norms, task_norms, task_scales] = facts;
    let energy_retention = energy_retention(&sigma, &norms, rank);
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect();
    let layer = |(l, rank_deficient): (usize, bool)| {
        let own = l * tasks..(l + 1) * tasks;
        MergedLayer {
            task_norms: wide(&task_norms[own.clone()]),
            task_scales: wide(&task_scales[own.clone()]),
            energy_retention: energy_retention[own.clone()].to_vec(),
            rank_deficient,
        }
    };
    deficient.into_iter().enumerate().map(layer).collect()
}

/// Eigenvalue weighting (paper 2) from singular values `batch x 1 x r`: `w_j = (lambda_j / mean lambda)^power` with
/// `lambda = sigma^2`, then `w / mean w`. All ones for power 0, null directions included; all zeros for a task without any shift.
pub fn eigenvalue_weights<B: Backend>(backend: &B, sigma: &B::Tensor, power: f64) -> Result<B::Tensor> {
    if power == 0.0 {
        return backend.upload(sigma.shape(), &vec![1.0; sigma.shape().len()]);
    }
    let mut weights = backend.duplicate(sigma)?;
    for exponent in [2.0, power as f32, 1.0] {
        // scaling by a mean changes nothing in the end, and keeps squares within f32
        backend.polarize(&mut weights, exponent, Polarity::Full)?;
    }
    Ok(weights)
}

/// `s_t = (n_t / mean n)^2` of the `tasks` of each layer; all ones for `None`.
fn inter_task_scales<B: Backend>(
    backend: &B,
    task_norms: &B::Tensor,
    tasks: usize,
    scale: Option<Scale>,
) -> Result<B::Tensor> {
    let shape = task_norms.shape();
    let Some(scale) = scale else { return backend.upload(shape, &vec![1.0; shape.len()]) };
    let mut scales =
        backend.duplicate(task_norms)?.reshape(Shape::new(shape.batch / tasks.max(1), 1, tasks))?;
    backend.polarize(&mut scales, scale.exponent as f32, scale.polarity)?;
    scales.reshape(shape)
}

/// `E~_t = E_t diag(w_t)` and `A~_t = s_t diag(w_t) A_t` with `s_t = (n_t / mean n)^2`, concatenated over the `tasks` of each
/// layer; then `A_cat <- A_cat diag(c)` with `c_j = (||A_cat[:, j]|| / mean_j ||A_cat[:, j]||)^2`.
pub fn concatenate<B: Backend>(
    backend: &B,
    factors: TaskFactors<B::Tensor>,
    tasks: usize,
    options: &EsmOptions,
) -> Result<Concatenation<B::Tensor>> {
    let TaskFactors { subspace, mut projected, task_norms } = factors;
    let PendingEigenpairs { mut basis, sigma, norms } = subspace;
    let Shape { batch, rows: found, cols: d_out } = basis.shape();
    let d_in = projected.shape().cols;
    let weights = eigenvalue_weights(backend, &sigma, options.eigen_weight_power)?;
    let task_scales = inter_task_scales(backend, &task_norms, tasks, options.inter_task)?;

    let column = backend.slice(&weights, 0..batch, 0..1, 0..found)?.reshape(Shape::new(batch, found, 1))?;
    backend.scale_rows(&mut basis, &column)?;
    backend.scale_rows(&mut projected, &column)?;
    backend.scale_batches(&mut projected, &task_scales)?;

    let layers = batch / tasks.max(1);
    let e_cat = basis.reshape(Shape::new(layers, tasks * found, d_out))?;
    let mut a_cat = projected.reshape(Shape::new(layers, tasks * found, d_in))?;
    let column_scales = match options.inter_dimension {
        Some(scale) => Some(inter_dimension_scaling(backend, &mut a_cat, scale)?),
        None => None,
    };
    Ok(Concatenation { e_cat, a_cat, weights, task_scales, column_scales, task_norms, sigma, norms })
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
