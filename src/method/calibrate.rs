//! Last steps after any method, on the matrices of layers: the spectrum of the merged delta is mended.

use super::Solver;
use super::spectral::{scaled_rows, triples};
use crate::backend::{Backend, Op, Result, Shape, Tensor};

/// A last step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Calibrate {
    /// Singular value calibration (arXiv 2602.05536): directions that several tasks share are counted once.
    Svc,
    /// Subspace boosting (arXiv 2506.16506): singular values past the index where their cumulative share passes this are raised to
    /// the value there.
    Boost(f64),
}

impl Calibrate {
    /// The merged delta, mended; `deltas` are those of all tasks.
    pub async fn apply<B: Backend>(
        self,
        backend: &B,
        merged: B::Tensor,
        deltas: &[B::Tensor],
        solver: Solver,
    ) -> Result<B::Tensor> {
        let Shape { rows, cols, .. } = merged.shape();
        let own = triples(backend, &merged, rows.min(cols), solver).await?;
        match self {
            Calibrate::Svc => {
                // a_r = s_r v_r^T = u_r^T M
                let of_merged = backend.matmul(&own.u, Op::None, &merged, Op::None)?;
                let mut sums = vec![0.0; own.u.shape().rows];
                for delta in deltas {
                    let of_task = backend.matmul(&own.u, Op::None, delta, Op::None)?;
                    let products = backend.row_products(&of_merged, &of_task)?;
                    let norms = backend.row_norms(&of_task)?;
                    let [products, norms] = backend.download_all([&products, &norms]).await?;
                    for ((sum, product), norm) in sums.iter_mut().zip(products).zip(norms) {
                        let square = f64::from(norm).powi(2);
                        let projection = if square > 0.0 { f64::from(product) / square } else { 0.0 };
                        *sum += projection.max(0.1);
                    }
                }
                let factors: Vec<f64> = sums.iter().map(|sum| deltas.len() as f64 / sum - 1.0).collect();
                // U diag(g) U^T M, as M and what is added to it
                let added = scaled_rows(backend, of_merged, &factors)?;
                let mut mended = merged;
                backend.gemm(1.0, &own.u, Op::Transpose, &added, Op::None, 1.0, &mut mended)?;
                Ok(mended)
            }
            Calibrate::Boost(beta) => {
                let sigma: Vec<f64> =
                    backend.download(&own.sigma).await?.iter().map(|&s| f64::from(s)).collect();
                let total: f64 = sigma.iter().sum();
                let mut sum = 0.0;
                let passes = |s: &f64| {
                    sum += s;
                    sum > beta * total
                };
                let at = sigma.iter().position(passes).unwrap_or(sigma.len().saturating_sub(1));
                let floor = sigma.get(at).copied().unwrap_or(0.0);
                let raise: Vec<f64> = sigma.iter().map(|&s| (floor - s).max(0.0)).collect();
                let added = scaled_rows(backend, own.v, &raise)?;
                let mut mended = merged;
                backend.gemm(1.0, &own.u, Op::Transpose, &added, Op::None, 1.0, &mut mended)?;
                Ok(mended)
            }
        }
    }
}
