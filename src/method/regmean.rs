//! RegMean: the linear layer nearest to all experts' outputs on their own inputs.

use super::Solver;
use super::esd::Inputs;
use super::spectral::{Matrices, Spectral};
use super::table::{Base, Calibration, Description, Kind, Range, Strength, number, word};
use super::values::Values;
use crate::backend::{Backend, Op, Result, Shape, Tensor};

/// `regmean`
pub const METHOD: Description = Description {
    name: "regmean",
    line: "the weights whose outputs are nearest to each expert's on that expert's own inputs",
    formula: "W = (sum G_t)^-1 (sum G_t W_t^T), transposed, G_t = X_t^T X_t with its off-diagonals times off_diagonal;\n\
              ridge eps = ridge trace(sum G)/d_in: eps/T I on every G_t (ridge_to: mean), or eps I on the inverse alone (zero)",
    source: "Jin et al., ICLR 2023 (arXiv 2212.09849)",
    kind: Kind::Spectral,
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::OfExperts,
    strength: Strength::Alpha,
    parameters: &[
        number("off_diagonal", Range::SHARE, 0.95, "factor of the off-diagonals of every G"),
        number("ridge", Range::NOT_NEGATIVE, 0.0, "ridge over the mean of the diagonal"),
        word("ridge_to", &["mean", "zero"], "what unseen directions are pulled to"),
    ],
    example: "off_diagonal: 0.9",
};

/// `regmean_plus`
pub const PLUS: Description = Description {
    name: "regmean_plus",
    line: "the same with the inputs of each block taken behind the blocks that are merged already",
    formula: "regmean, with X_t of block l from expert t's samples through its block l behind the merged embeddings and blocks 1..l-1\n\
              (merged with alpha 1, whatever alpha multiplies in the end): block by block",
    source: "RegMean++, 2025 (arXiv 2508.03121)",
    calibration: Calibration::OfMerged,
    ..METHOD
};

/// RegMean.
pub struct RegMean {
    off_diagonal: f64,
    ridge: f64,
    to_zero: bool,
}

impl Spectral for RegMean {
    fn new(values: &Values) -> std::result::Result<Self, String> {
        let (off_diagonal, ridge) = (values.number("off_diagonal"), values.number("ridge"));
        Ok(RegMean { off_diagonal, ridge, to_zero: values.word("ridge_to") == "zero" })
    }

    fn wants_base(&self) -> bool {
        self.to_zero && self.ridge > 0.0
    }

    /// Every row is solved for by itself; the base's are not in the basis of the differences.
    fn turns_with_outputs(&self) -> bool {
        !self.wants_base()
    }

    async fn merge<B: Backend>(
        &self,
        backend: &B,
        layer: &Matrices<'_, B::Tensor>,
        _: Solver,
    ) -> Result<B::Tensor> {
        let Shape { rows, cols, .. } = layer.deltas.first().map_or(Shape::new(1, 0, 0), Tensor::shape);
        let tasks = layer.deltas.len() as f64;
        let eye = identity(backend, cols)?;
        let mut grams = Vec::new();
        let mut trace = 0.0;
        for inputs in layer.inputs {
            let gram = match inputs {
                Inputs::Activations { x, .. } => backend.gram(x, Op::Transpose)?,
                Inputs::Gram { gram, .. } => backend.duplicate(gram)?,
                Inputs::DataFree => backend.duplicate(&eye)?,
            };
            trace += backend
                .download(&backend.inner_products(&gram, &eye)?)
                .await?
                .iter()
                .map(|&x| f64::from(x))
                .sum::<f64>();
            grams.push(damped(backend, gram, self.off_diagonal)?);
        }
        // in differences: sum G W^T = (sum G) b^T + sum G d^T, so that the base's part need not be solved for
        let eps = self.ridge * trace / cols.max(1) as f64;
        let mut all = backend.zeros(Shape::matrix(cols, cols))?;
        let mut right = backend.zeros(Shape::matrix(rows, cols))?;
        for (gram, delta) in grams.iter_mut().zip(layer.deltas) {
            if eps > 0.0 && !self.to_zero {
                backend.axpby((eps / tasks) as f32, &eye, 1.0, gram)?;
            }
            backend.axpby(1.0, gram, 1.0, &mut all)?;
            backend.gemm(1.0, delta, Op::None, gram, Op::None, 1.0, &mut right)?;
        }
        if self.wants_base() {
            backend.axpby(eps as f32, &eye, 1.0, &mut all)?;
            if let Some(base) = layer.base {
                backend.axpby(-eps as f32, base, 1.0, &mut right)?;
            }
        }
        solve(backend, &all, &right, rows, cols)
    }
}

/// `right all^(-1)`, and twice what is left of it: float32 has solved for the first digits, and solves for the next.
fn solve<B: Backend>(
    backend: &B,
    all: &B::Tensor,
    right: &B::Tensor,
    rows: usize,
    cols: usize,
) -> Result<B::Tensor> {
    let smallest = crate::kernels::gram_pivot(cols);
    let mut solution = backend.zeros(Shape::matrix(rows, cols))?;
    let mut rest = backend.duplicate(right)?;
    for _ in 0..3 {
        backend.solve(1.0, (all, smallest), Op::Transpose, &rest, 1.0, &mut solution)?;
        rest = backend.duplicate(right)?;
        backend.gemm(-1.0, &solution, Op::None, all, Op::None, 1.0, &mut rest)?;
    }
    Ok(solution)
}

fn identity<B: Backend>(backend: &B, n: usize) -> Result<B::Tensor> {
    let mut values = vec![0.0; n * n];
    values.iter_mut().step_by(n + 1).for_each(|x| *x = 1.0);
    backend.upload(Shape::matrix(n, n), &values)
}

/// The matrix with its off-diagonals multiplied: `f G + (1 - f) diag(G)`.
fn damped<B: Backend>(backend: &B, gram: B::Tensor, factor: f64) -> Result<B::Tensor> {
    if factor == 1.0 {
        return Ok(gram);
    }
    let n = gram.shape().rows;
    let eye = identity(backend, n)?;
    let diagonal = backend.row_products(&gram, &eye)?; // n x 1
    let mut on_diagonal = eye;
    backend.scale_rows(&mut on_diagonal, &diagonal)?;
    let mut damped = gram;
    backend.axpby((1.0 - factor) as f32, &on_diagonal, factor as f32, &mut damped)?;
    Ok(damped)
}
