//! ESM++: low-rank experts of what the static merge lost, and routing to them by prototypes (paper 2, section 4).
//!
//! In a routed layer a sample goes through `y = W x + b + B_t* (A_t* x)`, where `t*` is the task whose prototype is
//! nearest to the mean of the sample's own tokens. Nothing is trained.

use super::esd::{Inputs, essential_subspace};
use super::table::{Description, Parameter, special};
use super::{Decomposition, Solver, esm};
use crate::backend::{Backend, Op, Result, Shape, Tensor};

/// `esm++`
pub const METHOD: Description = Description {
    name: "esm++",
    line: "esm, with a low-rank expert for each task beside it, to which samples are routed",
    formula: "esm; in routed layers B_t = the r leading eigenvectors of R_t G_t R_t^T, R_t = W_t - W, A_t = B_t^T R_t;\n\
              y = W x + b + B_t* (A_t* x) with t* the task whose prototype is nearest to the mean of the sample's own tokens",
    parameters: PARAMETERS,
    example: "alpha: 0.8\nrank: 8",
    ..esm::METHOD
};

/// ESM's, where `rank` is the experts', and `esm_rank` takes its place.
const PARAMETERS: &[Parameter] = &{
    const OWN: [Parameter; 4] = [
        special(
            "esm_rank",
            "auto | a number | a fraction of d_out",
            "auto: floor(d_out / T)",
            "directions of a task in the static merge",
        ),
        special("residual_base", "merged | pretrained", "merged", "what residuals are taken against"),
        special("expert_decomposition", "esd | svd", "esd", "where the directions of an expert come from"),
        special("routed_layers", "patterns of weights' names", "by architecture", "which layers get experts"),
    ];
    let mut all = [const { special("rank", "a whole number from 1", "8", "directions of an expert") }; 18];
    let mut i = 0;
    while i < 14 {
        if i != 4 {
            all[i] = esm::PARAMETERS[i];
        }
        i += 1;
    }
    let mut i = 0;
    while i < 4 {
        all[14 + i] = OWN[i];
        i += 1;
    }
    all
};

/// The experts of one layer.
pub struct LowRankExperts<T> {
    /// `B_t^T`, `T x r x d_out`: orthonormal rows.
    pub b: T,
    /// `A_t = B_t^T R_t`, `T x r x d_in`.
    pub a: T,
    /// Eigenvalues of `R_t G_t R_t^T / (n - 1)` along the rows of `b`, r for each task.
    pub eigenvalues: Vec<Vec<f64>>,
    /// For each task the share of the residual output shift's energy that its expert restores on the proxies.
    pub energy_retention: Vec<f64>,
}

/// What residuals are taken against, which is also the weight that is served in a routed layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ResidualBase {
    /// The weight merged by ESM.
    #[default]
    Esm,
    /// The pretrained weight.
    Pretrained,
}

impl ResidualBase {
    /// All of them, by the names that recipes use.
    pub const NAMES: [(&'static str, ResidualBase); 2] =
        [("esm", ResidualBase::Esm), ("pretrained", ResidualBase::Pretrained)];

    /// Its name in recipes and files.
    pub fn name(self) -> &'static str {
        match self {
            ResidualBase::Esm => "esm",
            ResidualBase::Pretrained => "pretrained",
        }
    }
}

/// `R_t G_t R_t^T` decomposed: `B_t` its `r` leading eigenvectors, `A_t = B_t^T R_t`; no weighting, scaling or
/// orthogonalisation. `residuals` is `T x d_out x d_in`, `R_t = W_t - W_merged` (or `W_t - W_0`); `inputs` are those of the
/// experts themselves. [`Decomposition::Svd`] gives the truncated SVD of `R_t`, to compare with.
pub async fn low_rank_experts<B: Backend>(
    backend: &B,
    residuals: &B::Tensor,
    inputs: &Inputs<B::Tensor>,
    decomposition: Decomposition,
    r: usize,
    solver: Solver,
) -> Result<LowRankExperts<B::Tensor>> {
    let subspace = essential_subspace(backend, residuals, inputs, decomposition, r, solver).await?;
    let a = backend.matmul(&subspace.basis, Op::None, residuals, Op::None)?;
    Ok(LowRankExperts {
        b: subspace.basis,
        a,
        eigenvalues: subspace.eigenvalues,
        energy_retention: subspace.energy_retention,
    })
}

/// Prototypes `p_t`, the mean over all proxy tokens of the layer's input in expert t: `T x 1 x d_in`. `x` is `T x n x d_in`,
/// padded with zero rows past each expert's `tokens`.
pub fn prototypes<B: Backend>(backend: &B, x: &B::Tensor, tokens: &[usize]) -> Result<B::Tensor> {
    let Shape { batch, rows, .. } = x.shape();
    let weights: Vec<f32> =
        tokens.iter().flat_map(|&n| std::iter::repeat_n(1.0 / n.max(1) as f32, rows)).collect();
    backend.matmul(&backend.upload(Shape::new(batch, 1, rows), &weights)?, Op::None, x, Op::None)
}

/// Cosines between the token means of S samples (`1 x S x d_in`) and the prototypes of T tasks (`1 x T x d_in`): `1 x S x T`.
/// Every sample is a product of its own, whose sums are formed in the same order however many samples come along.
pub fn cosine_scores<B: Backend>(
    backend: &B,
    mut means: B::Tensor,
    mut prototypes: B::Tensor,
) -> Result<B::Tensor> {
    for rows in [&mut means, &mut prototypes] {
        let norms = backend.row_norms(rows)?;
        backend.divide_rows(rows, &norms)?;
    }
    let (samples, tasks, d_in) = (means.shape().rows, prototypes.shape().rows, means.shape().cols);
    let each = means.reshape(Shape::new(samples, 1, d_in))?;
    backend.matmul(&each, Op::None, &prototypes, Op::Transpose)?.reshape(Shape::matrix(samples, tasks))
}

/// `t* = argmax_t` of each row of `scores` (`S x T`, row-major); the first of equal ones.
pub fn route(scores: &[f32], tasks: usize) -> Vec<usize> {
    let first_best = |row: &[f32]| (1..tasks).fold(0, |best, t| if row[t] > row[best] { t } else { best });
    scores.chunks(tasks.max(1)).map(first_best).collect()
}

/// `x A_t^T`, the narrow half of an expert: `x` is `1 x n x d_in`, `a` holds `A_t` of all tasks, `T x r x d_in`.
pub fn narrow<B: Backend>(backend: &B, a: &B::Tensor, task: usize, x: &B::Tensor) -> Result<B::Tensor> {
    backend.linear(x, &of_task(backend, a, task)?, Op::Transpose)
}

/// `y += (x A_t^T) B_t^T`, the wide half: `thin` is what [`narrow`] gave, `b` holds `B_t^T` of all tasks, `T x r x d_out`.
pub fn add_wide<B: Backend>(
    backend: &B,
    b: &B::Tensor,
    task: usize,
    thin: &B::Tensor,
    y: &mut B::Tensor,
) -> Result<()> {
    let restored = backend.linear(thin, &of_task(backend, b, task)?, Op::None)?;
    backend.axpby(1.0, &restored, 1.0, y)
}

/// Adds what expert `t` restores to the outputs of some samples: `y += (x A_t^T) B_t^T`, never forming `B_t A_t`. `x` is
/// `1 x n x d_in`, `y` is `1 x n x d_out`; all samples took the same expert.
pub fn add_expert<B: Backend>(
    backend: &B,
    experts: &LowRankExperts<B::Tensor>,
    task: usize,
    x: &B::Tensor,
    y: &mut B::Tensor,
) -> Result<()> {
    add_wide(backend, &experts.b, task, &narrow(backend, &experts.a, task, x)?, y)
}

fn of_task<B: Backend>(backend: &B, factors: &B::Tensor, task: usize) -> Result<B::Tensor> {
    let Shape { rows, cols, .. } = factors.shape();
    backend.slice(factors, task..task + 1, 0..rows, 0..cols)
}
