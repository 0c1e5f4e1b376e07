//! KnOTS: tasks are brought into one basis before they are merged.

use super::Solver;
use super::dare::{self, Dare};
use super::elementwise::Elementwise;
use super::held::Held;
use super::spectral::{Matrices, Spectral, batched, common_columns};
use super::table::{Base, Calibration, Description, Kind, Parameter, Strength};
use super::ties::{self, Ties};
use super::values::Values;
use crate::backend::{Backend, Op, Result, Shape, Tensor};

/// `knots_ties`
pub const METHOD: Description = Description {
    name: "knots_ties",
    line: "ties in the basis that the columns of all differences span together",
    formula: "[D_1 | ... | D_T] = U diag(s) [V_1 | ... | V_T], s > 1e-5 s_1; dW = U TIES(diag(s) V_t)",
    source: "Stoica et al., ICLR 2025 (arXiv 2410.19735)",
    kind: Kind::Spectral,
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: TIES,
    example: "density: 0.3",
};

/// TIES' parameters but for its scope.
const TIES: &[Parameter] =
    &[ties::METHOD.parameters[0], ties::METHOD.parameters[1], ties::METHOD.parameters[2]];

/// `knots_dare_ties`
pub const DROPPED: Description = Description {
    name: "knots_dare_ties",
    line: "dare_ties in the basis that the columns of all differences span together",
    formula: "as knots_ties, with DARE-TIES in place of TIES",
    parameters: dare::WITH_ELECTION.parameters,
    example: "density: 0.5",
    ..METHOD
};

/// Singular values up to this share of the largest are none.
const CUT: f64 = 1e-5;

/// An elementwise method in the common basis.
pub struct Knots<M>(M);

/// `knots_ties`
pub type KnotsTies = Knots<Ties>;
/// `knots_dare_ties`
pub type KnotsDareTies = Knots<Dare<true>>;

impl<M: Elementwise> Spectral for Knots<M> {
    fn new(values: &Values) -> std::result::Result<Self, String> {
        M::new(values).map(Knots)
    }

    /// All that is done is done to `diag(s) V_t`.
    fn turns_with_outputs(&self) -> bool {
        true
    }

    async fn merge<B: Backend>(
        &self,
        backend: &B,
        layer: &Matrices<'_, B::Tensor>,
        solver: Solver,
    ) -> Result<B::Tensor> {
        let basis = common_columns(backend, layer.deltas, CUT, solver).await?;
        let Shape { rows: rank, .. } = basis.shape();
        let cols = layer.deltas.first().map_or(0, |delta| delta.shape().cols);
        let parts = layer.deltas.iter().map(|delta| backend.matmul(&basis, Op::None, delta, Op::None));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let mut held = Held::rows(backend, batched(backend, &parts)?)?;
        let learned = self.0.learn::<B, _>(backend, &mut held).await?;
        let merged =
            self.0.apply(backend, &learned, held.into_slab()).await?.reshape(Shape::matrix(rank, cols))?;
        backend.matmul(&basis, Op::Transpose, &merged, Op::None)
    }
}
