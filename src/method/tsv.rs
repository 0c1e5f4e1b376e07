//! TSV-M: Task Singular Vectors merging (Gargiulo et al., CVPR 2025, arXiv 2412.00081).

use super::fusion::Concatenations;
use super::spectral::{Matrices, Spectral, batched};
use super::table::{Base, Calibration, Description, Kind, Strength};
use super::values::Values;
use super::{Fusion, MergedFactors, MergedLayer, MergedLayers, Solver, join_batches};
use crate::backend::{Backend, Op, Result, Shape, Tensor};
use crate::linalg::{SymmetricProduct, energy_retention, pending_eigenpairs};

/// `tsv_m`
pub const METHOD: Description = Description {
    name: "tsv_m",
    line: "orthogonalises the leading singular directions of all tasks together",
    formula: "dW_t = U S V^T, k = max(1, floor(min(d_out, d_in)/T)) leading triples of each task;\n\
              dW = polar(U_cat) diag(S_cat) polar(V_cat)",
    source: "Gargiulo et al., CVPR 2025 (arXiv 2412.00081)",
    kind: Kind::Spectral,
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[],
    example: "alpha: 1.0",
};

/// The k leading singular triples of T tasks in L layers.
pub struct TaskTriples<T> {
    /// Left singular vectors as rows, `LT x k x d_out`.
    pub u: T,
    /// Right singular vectors as rows, `LT x k x d_in`.
    pub v: T,
    /// Singular values, `LT x 1 x k`, descending.
    pub sigma: T,
    /// `||dW_t||_F`, `LT x 1 x 1`.
    pub norms: T,
}

/// TSV-M of layers of one shape; `deltas` is `LT x d_out x d_in`, with the `tasks` of the first layer first. The product is
/// multiplied by the mean singular values of both concatenations if `mean_sigma`.
pub async fn tsv_m<B: Backend>(
    backend: &B,
    deltas: &B::Tensor,
    tasks: usize,
    mean_sigma: bool,
    solver: Solver,
) -> Result<MergedLayers<B::Tensor>> {
    let Shape { rows: d_out, cols: d_in, .. } = deltas.shape();
    let triples = task_triples(backend, deltas, rank_budget(d_out, d_in, tasks), solver).await?;
    merge_triples(backend, vec![triples], tasks, mean_sigma, solver).await
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
    let Shape { batch, rows: d_out, cols: d_in } = deltas.shape();
    let ranks = vec![d_out.min(d_in); batch];
    let c = SymmetricProduct::Factor { x: deltas, op: Op::None };
    let left = pending_eigenpairs(backend, c, k, &ranks, solver.accuracy, solver.seed).await?;
    let mut v = backend.matmul(&left.basis, Op::None, deltas, Op::None)?;
    backend.divide_rows(&mut v, &backend.duplicate(&left.sigma)?.reshape(Shape::new(batch, k, 1))?)?;
    Ok(TaskTriples { u: left.basis, v, sigma: left.sigma, norms: left.norms })
}

/// The second half: `dW = polar(U_cat) diag(S_cat) polar(V_cat)`, over the `tasks` of each layer in order. The host waits once,
/// for all that it needs to know of all layers.
pub async fn merge_triples<B: Backend>(
    backend: &B,
    parts: Vec<TaskTriples<B::Tensor>>,
    tasks: usize,
    mean_sigma: bool,
    solver: Solver,
) -> Result<MergedLayers<B::Tensor>> {
    let cat = Concatenated::new(backend, parts, tasks)?;
    let concatenations = cat.concatenations(tasks * cat.k, mean_sigma, solver);
    let mut fused = concatenations.fuse(backend).await?;
    let [left, right] = &fused.checks;
    let [left, right, facts @ ..] = backend.download_all([left, right, &cat.sigma, &cat.norms]).await?;
    let deficient = concatenations.mend(backend, &mut fused.deltas, [&left, &right]).await?;
    Ok(MergedLayers { deltas: fused.deltas, layers: merged_layers(&facts, deficient, tasks, cat.k) })
}

/// [`merge_triples`] of triples that stand for `budget` of each task, the others null, with the merged deltas left as products.
pub(super) async fn merge_triples_apart<B: Backend>(
    backend: &B,
    triples: TaskTriples<B::Tensor>,
    (tasks, budget): (usize, usize),
    mean_sigma: bool,
    solver: Solver,
) -> Result<MergedFactors<B::Tensor>> {
    let cat = Concatenated::new(backend, vec![triples], tasks)?;
    let concatenations = cat.concatenations(tasks * budget, mean_sigma, solver);
    let mut fused = concatenations.fuse_factors(backend).await?;
    let [left, right] = &fused.checks;
    let [left, right, facts @ ..] = backend.download_all([left, right, &cat.sigma, &cat.norms]).await?;
    let deficient = concatenations.mend_factors(backend, &mut fused, [&left, &right]).await?;
    let layers = merged_layers(&facts, deficient, tasks, cat.k);
    Ok(MergedFactors { b: fused.left, a: fused.right, layers })
}

/// The triples of all tasks, layer by layer.
struct Concatenated<T> {
    /// `L x kT x d_out`
    u: T,
    /// `L x kT x d_in`
    v: T,
    /// `L x kT x 1`
    weights: T,
    /// `LT x 1 x k`
    sigma: T,
    /// `LT x 1 x 1`
    norms: T,
    /// Triples of a task.
    k: usize,
}

impl<T: Tensor> Concatenated<T> {
    fn new<B: Backend<Tensor = T>>(backend: &B, parts: Vec<TaskTriples<T>>, tasks: usize) -> Result<Self> {
        let (mut us, mut vs, mut sigma, mut norms) = (vec![], vec![], vec![], vec![]);
        for part in parts {
            us.push(part.u);
            vs.push(part.v);
            sigma.push(part.sigma);
            norms.push(part.norms);
        }
        let join = |parts| join_batches(backend, parts);
        let (u, v, sigma, norms) = (join(us)?, join(vs)?, join(sigma)?, join(norms)?);
        let Shape { batch, rows: k, cols: d_out } = u.shape();
        let (d_in, layers, directions) = (v.shape().cols, batch / tasks.max(1), tasks * k);
        Ok(Concatenated {
            u: u.reshape(Shape::new(layers, directions, d_out))?,
            v: v.reshape(Shape::new(layers, directions, d_in))?,
            weights: backend.duplicate(&sigma)?.reshape(Shape::new(layers, directions, 1))?,
            sigma,
            norms,
            k,
        })
    }

    fn concatenations(&self, directions: usize, mean_sigma: bool, solver: Solver) -> Concatenations<'_, T> {
        Concatenations {
            left: &self.u,
            right: &self.v,
            weights: Some(&self.weights),
            directions,
            fusion: Fusion::Polar,
            mean_sigma,
            gain: 1.0,
            accuracy: solver.accuracy,
        }
    }
}

/// What layers were like, by the sigma and the norms of [`Concatenated`].
fn merged_layers(facts: &[Vec<f32>; 2], deficient: Vec<bool>, tasks: usize, k: usize) -> Vec<MergedLayer> {
    let energy_retention = energy_retention(&facts[0], &facts[1], k);
    let layer = |(l, rank_deficient): (usize, bool)| MergedLayer {
        energy_retention: energy_retention[l * tasks..(l + 1) * tasks].to_vec(),
        rank_deficient,
        ..MergedLayer::default()
    };
    deficient.into_iter().enumerate().map(layer).collect()
}

/// TSV-M of one layer at a time, with nothing but its deltas.
pub struct TsvM;

impl Spectral for TsvM {
    fn new(_: &Values) -> std::result::Result<Self, String> {
        Ok(TsvM)
    }

    async fn merge<B: Backend>(
        &self,
        backend: &B,
        layer: &Matrices<'_, B::Tensor>,
        solver: Solver,
    ) -> Result<B::Tensor> {
        let deltas = batched(backend, layer.deltas)?;
        Ok(tsv_m(backend, &deltas, layer.deltas.len(), false, solver).await?.deltas)
    }
}
