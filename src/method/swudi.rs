//! SWUDI: the closed form of merging that interferes least with the tasks' own directions.

use super::Solver;
use super::spectral::{Matrices, Spectral, polar_of, scaled_rows, stacked, sum};
use super::table::{Base, Calibration, Description, Kind, Range, Strength, number, word};
use super::values::Values;
use crate::backend::{Backend, Op, Result, Shape, Tensor};
use crate::linalg::{SymmetricProduct, leading_eigenpairs};

/// `swudi`
pub const METHOD: Description = Description {
    name: "swudi",
    line: "the closed form of WUDI merging: least interference with the input directions of each task",
    formula: "w_t = 1/||D_t||^2; C = sum w_t D_t^T D_t = V diag(lambda) V^T; R = sum w_t D_t D_t^T D_t; D_0 = sum D_t (or the mean);\n\
              dW = D_0 (I - V diag(h) V^T) + R V diag(h/lambda) V^T; filter adaptive: h = 1 on the first\n\
              ceil((sum sqrt lambda)^2 / sum lambda); flow: h = 1 - exp(-lambda t) on the first ceil(rho d_in)",
    source: "arXiv 2606.07289",
    kind: Kind::Spectral,
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[
        word("filter", &["adaptive", "flow"], "which directions are filtered"),
        word("start", &["sum", "mean"], "what is filtered"),
        number("time", Range::POSITIVE, 300.0, "of filter flow: t"),
        number("rho", Range::SHARE, 0.65, "of filter flow: share of the directions"),
    ],
    example: "filter: adaptive",
};

/// SWUDI.
pub struct Swudi {
    flow: Option<(f64, f64)>,
    mean: bool,
}

impl Swudi {
    /// `h` and `h / lambda` of an eigenvalue.
    fn filter(&self, lambda: f64) -> (f64, f64) {
        match self.flow {
            _ if lambda <= 0.0 => (0.0, 0.0),
            None => (1.0, lambda.recip()),
            // 1 - exp(-lambda t), which is no difference of two close numbers here
            Some((time, _)) => {
                let h = -(-lambda * time).exp_m1();
                (h, h / lambda)
            }
        }
    }
}

impl Spectral for Swudi {
    fn new(values: &Values) -> std::result::Result<Self, String> {
        let flow = (values.word("filter") == "flow").then(|| (values.number("time"), values.number("rho")));
        Ok(Swudi { flow, mean: values.word("start") == "mean" })
    }

    /// The filter is one of inputs.
    fn turns_with_outputs(&self) -> bool {
        true
    }

    async fn merge<B: Backend>(
        &self,
        backend: &B,
        layer: &Matrices<'_, B::Tensor>,
        solver: Solver,
    ) -> Result<B::Tensor> {
        let mut merged = sum(backend, layer.deltas)?;
        let Shape { rows: d_out, cols: d_in, .. } = merged.shape();
        if self.mean {
            merged = super::elementwise::scaled(backend, merged, (layer.deltas.len() as f64).recip())?;
        }
        // X = [sqrt(w_1) D_1; ...]: C = X^T X
        let mut scaled = Vec::new();
        for delta in layer.deltas {
            let norm = backend.download(&backend.frobenius_norms(delta)?).await?;
            let norm = norm.first().map_or(0.0, |&norm| f64::from(norm));
            if norm > 0.0 {
                scaled.push(super::elementwise::scaled(backend, backend.duplicate(delta)?, norm.recip())?);
            }
        }
        if scaled.is_empty() {
            return Ok(merged);
        }
        let x = stacked(backend, &scaled.iter().collect::<Vec<_>>())?;
        let most = d_in.min(x.shape().rows);
        let count = match self.flow {
            Some((_, rho)) => (rho * d_in as f64).ceil() as usize,
            None => {
                let (_, nuclear_norm) = polar_of(backend, &x, solver).await?;
                // sum lambda is the number of terms, each of norm 1
                (nuclear_norm.powi(2) / scaled.len() as f64 - 1e-6).ceil() as usize
            }
        };
        let count = count.clamp(1, most);
        let c = SymmetricProduct::Factor { x: &x, op: Op::Transpose };
        let pairs = leading_eigenpairs(backend, c, count, &[most], solver.accuracy, solver.seed).await?;
        let filters: Vec<(f64, f64)> = pairs.values[0].iter().map(|&lambda| self.filter(lambda)).collect();
        let (h, over): (Vec<f64>, Vec<f64>) = filters.into_iter().unzip();
        let v = &pairs.basis;
        // R V = sum_t Z_t (Z_t^T Z_t V) ||D_t||, with Z_t = D_t / ||D_t||: w_t D_t D_t^T D_t = D_t Z_t^T Z_t
        let mut along = backend.zeros(Shape::matrix(d_out, count))?;
        let mut units = scaled.iter();
        for delta in layer.deltas {
            let norm = backend.download(&backend.frobenius_norms(delta)?).await?;
            if norm.first().is_some_and(|&norm| norm > 0.0)
                && let Some(unit) = units.next()
            {
                let inner = backend.matmul(unit, Op::None, v, Op::Transpose)?; // Z V: d_out x k
                let back = backend.matmul(unit, Op::Transpose, &inner, Op::None)?; // Z^T Z V: d_in x k
                backend.gemm(1.0, delta, Op::None, &back, Op::None, 1.0, &mut along)?;
            }
        }
        let start = backend.matmul(&merged, Op::None, v, Op::Transpose)?; // D_0 V
        let filtered = scaled_rows(backend, backend.duplicate(v)?, &h)?;
        backend.gemm(-1.0, &start, Op::None, &filtered, Op::None, 1.0, &mut merged)?;
        let weighed = scaled_rows(backend, backend.duplicate(v)?, &over)?;
        backend.gemm(1.0, &along, Op::None, &weighed, Op::None, 1.0, &mut merged)?;
        Ok(merged)
    }
}
