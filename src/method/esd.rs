//! Essential Subspace Decomposition: the principal components of a task's output shift.

use super::{Decomposition, Solver};
use crate::backend::{Backend, Op, Result, Shape, Tensor};
use crate::linalg::{
    Accuracy, PendingEigenpairs, SymmetricProduct, energy_retention, pending_eigenpairs, triangular_factor,
};

/// What is known of the inputs of one layer in each of T experts.
pub enum Inputs<T> {
    /// Every input token.
    Activations {
        /// `X_t`, `T x n x d_in`; experts with fewer tokens are padded with zero rows.
        x: T,
        /// The true number of tokens of each expert.
        tokens: Vec<usize>,
    },
    /// `G_t = X_t^T X_t`, not normalised.
    Gram {
        /// `T x d_in x d_in`.
        gram: T,
        /// The number of tokens summed over, for each expert.
        tokens: Vec<usize>,
    },
    /// No calibration: `G = I`.
    DataFree,
}

impl<T: Tensor> Inputs<T> {
    /// Those of one task, without what pads them.
    pub fn member<B: Backend<Tensor = T>>(&self, backend: &B, t: usize) -> Result<Inputs<T>> {
        Ok(match self {
            Inputs::Activations { x, tokens } => {
                let x = backend.slice(x, t..t + 1, 0..tokens[t], 0..x.shape().cols)?;
                Inputs::Activations { x, tokens: vec![tokens[t]] }
            }
            Inputs::Gram { gram, tokens } => {
                let n = gram.shape().cols;
                Inputs::Gram { gram: backend.slice(gram, t..t + 1, 0..n, 0..n)?, tokens: vec![tokens[t]] }
            }
            Inputs::DataFree => Inputs::DataFree,
        })
    }
}

impl<T> Inputs<T> {
    /// What a decomposition looks at.
    fn seen_by(&self, decomposition: Decomposition) -> &Inputs<T> {
        match decomposition {
            Decomposition::Esd => self,
            Decomposition::Svd => &Inputs::DataFree,
        }
    }

    /// The divisor `n - 1` of the covariance of task `t`; 1 for a single token and without calibration.
    fn divisor(&self, t: usize) -> f64 {
        match self {
            Inputs::Activations { tokens, .. } | Inputs::Gram { tokens, .. } => {
                tokens[t].saturating_sub(1).max(1) as f64
            }
            Inputs::DataFree => 1.0,
        }
    }

    /// The largest rank the covariance of task `t` can have.
    pub(super) fn rank(&self, t: usize, d_out: usize, d_in: usize) -> usize {
        match self {
            Inputs::Activations { tokens, .. } | Inputs::Gram { tokens, .. } => {
                tokens[t].min(d_out).min(d_in)
            }
            Inputs::DataFree => d_out.min(d_in),
        }
    }
}

/// Essential subspaces of T tasks.
pub struct EssentialSubspace<T> {
    /// `E_t^T`, `T x r x d_out`: orthonormal rows, most essential first; null directions are zero rows.
    pub basis: T,
    /// `lambda_t`, r for each task, descending; null ones are 0.
    pub eigenvalues: Vec<Vec<f64>>,
    /// For each task the share of the output shift's energy that the r directions keep, `sum_{j<=r} lambda / sum lambda`.
    pub energy_retention: Vec<f64>,
}

/// The output shift `dO_t = X_t dW_t^T`, `T x n x d_out` (paper 1, eq. 3).
pub fn output_shift<B: Backend>(backend: &B, x: &B::Tensor, deltas: &B::Tensor) -> Result<B::Tensor> {
    backend.matmul(x, Op::None, deltas, Op::Transpose)
}

/// ESD: the `r` leading eigenvectors and eigenvalues of `C_t = dO_t^T dO_t / (n - 1)`, uncentered, `d_out x d_out`
/// (paper 1, eqs. 4 to 6). With Grams, `C_t = dW_t G_t dW_t^T / (n - 1)`; without calibration `C_t = dW_t dW_t^T`.
///
/// `deltas` is `T x d_out x d_in`. With `n < r` there are only `n` directions; no other is invented.
pub async fn essential_subspace<B: Backend>(
    backend: &B,
    deltas: &B::Tensor,
    inputs: &Inputs<B::Tensor>,
    decomposition: Decomposition,
    r: usize,
    solver: Solver,
) -> Result<EssentialSubspace<B::Tensor>> {
    let pairs = pending_subspace(backend, deltas, inputs, decomposition, r, solver).await?;
    let [sigma, norms] = backend.download_all([&pairs.sigma, &pairs.norms]).await?;
    let eigenvalues = |(t, sigma): (usize, &[f32])| {
        let divisor = inputs.seen_by(decomposition).divisor(t);
        sigma.iter().map(|&s| f64::from(s).powi(2) / divisor).collect()
    };
    Ok(EssentialSubspace {
        basis: pairs.basis,
        eigenvalues: sigma.chunks(r.max(1)).enumerate().map(eigenvalues).collect(),
        energy_retention: energy_retention(&sigma, &norms, r),
    })
}

/// [`essential_subspace`] with its numbers left on the device, eigenvalues as singular values of the output shift.
pub(super) async fn pending_subspace<B: Backend>(
    backend: &B,
    deltas: &B::Tensor,
    inputs: &Inputs<B::Tensor>,
    decomposition: Decomposition,
    r: usize,
    solver: Solver,
) -> Result<PendingEigenpairs<B::Tensor>> {
    let inputs = inputs.seen_by(decomposition);
    let Shape { batch: tasks, rows: d_out, cols: d_in } = deltas.shape();
    let ranks: Vec<usize> = (0..tasks).map(|t| inputs.rank(t, d_out, d_in)).collect();
    let solve = async |c: SymmetricProduct<'_, B::Tensor>| {
        pending_eigenpairs(backend, c, r, &ranks, solver.accuracy, solver.seed).await
    };
    match inputs {
        Inputs::Activations { x, .. } => {
            let fewer = fewer_tokens(backend, x, d_out, r, solver.accuracy).await?;
            let shift = output_shift(backend, fewer.as_ref().unwrap_or(x), deltas)?;
            solve(SymmetricProduct::Factor { x: &shift, op: Op::Transpose }).await
        }
        Inputs::Gram { gram, .. } => solve(SymmetricProduct::Congruence { d: deltas, g: gram }).await,
        Inputs::DataFree => solve(SymmetricProduct::Factor { x: deltas, op: Op::None }).await,
    }
}

/// `R_t` (`T x d_in x d_in`) with `R_t^T R_t = X_t^T X_t`, whose output shift has the covariance of that of `X_t`: where there are
/// more tokens than input dimensions, and a device that gains by it. `exact` takes the tokens as they are.
async fn fewer_tokens<B: Backend>(
    backend: &B,
    x: &B::Tensor,
    d_out: usize,
    r: usize,
    accuracy: Accuracy,
) -> Result<Option<B::Tensor>> {
    let Shape { rows: tokens, cols: d_in, .. } = x.shape();
    // multiply-adds of an output shift of `m` rows, of its Gram matrix, and of an iteration on that
    let work = |m: usize| {
        let [m, d_in, d_out, r] = [m, d_in, d_out, r].map(|n| n as f64);
        let (small, large) = (m.min(d_out), m.max(d_out));
        m * d_in * d_out + small * small * (0.5 * large + PRODUCTS * BLOCK * r)
    };
    // of the factor, in f64: half as fast as f32
    let price = (tokens as f64 + d_in as f64 / 3.0) * (d_in as f64).powi(2);
    let pays = tokens > d_in && work(tokens) - work(d_in) > price;
    if accuracy == Accuracy::Exact || !pays || !backend.is_the_host() {
        return Ok(None);
    }
    triangular_factor(backend, x).await
}

/// Products with the matrix that subspace iteration makes, about.
const PRODUCTS: f64 = 8.0;

/// Vectors it has for each that is wanted, about.
const BLOCK: f64 = 1.5;

/// The rank budget of a task, `r = floor(d_out / T)`, at least 1.
pub fn rank_budget(d_out: usize, tasks: usize) -> usize {
    (d_out / tasks.max(1)).max(1)
}

/// `||V_m^T dW_t||_F^2 + sum_{j >= m} ||row j of dW_t||^2` with the complete basis `V_m`, `m = min(n, d_out)`: the squared
/// norm that the released code compares when there are fewer tokens than outputs. `delta` is one task's.
pub async fn code_padded_norm<B: Backend>(
    backend: &B,
    delta: &B::Tensor,
    inputs: &Inputs<B::Tensor>,
    task: usize,
    decomposition: Decomposition,
) -> Result<f64> {
    let Shape { rows: d_out, cols: d_in, .. } = delta.shape();
    let own = inputs.member(backend, task)?;
    let m = match &own {
        Inputs::Activations { tokens, .. } | Inputs::Gram { tokens, .. } => tokens[0].min(d_out),
        Inputs::DataFree => d_out.min(d_in),
    };
    let exact = Solver { accuracy: Accuracy::Exact, ..Solver::default() };
    let complete = essential_subspace(backend, delta, &own, decomposition, m, exact).await?;
    let inside = backend.matmul(&complete.basis, Op::None, delta, Op::None)?;
    let padded = backend.slice(delta, 0..1, m..d_out, 0..d_in)?;
    let norm = async |x: &B::Tensor| -> Result<f64> {
        let norms = backend.download(&backend.frobenius_norms(x)?).await?;
        Ok(norms.iter().map(|&v| f64::from(v)).sum())
    };
    Ok(norm(&inside).await?.hypot(norm(&padded).await?))
}
