//! Isotropic merging: the spectrum of the sum is made flat.

use super::Solver;
use super::spectral::{Matrices, Spectral, polar_of, stacked, sum, triples};
use super::table::{Base, Calibration, Description, Kind, Range, Strength, number};
use super::values::Values;
use crate::backend::{Backend, Op, Result, Shape, Tensor};

/// `iso_c`
pub const METHOD: Description = Description {
    name: "iso_c",
    line: "sums what fine-tuning changed and makes all singular values of the sum equal",
    formula: "D = sum dW_t = U S V^T; dW = mean(S) U V^T",
    source: "Marczak et al., ICML 2025 (arXiv 2502.04959)",
    kind: Kind::Spectral,
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[],
    example: "alpha: 1.0",
};

/// `iso_cts`
pub const COMMON_AND_SPECIFIC: Description = Description {
    name: "iso_cts",
    line: "iso_c on the directions that tasks share and, beside them, on those of each task alone",
    formula: "k_c = fraction min(d) leading triples of sum dW_t, the rest dealt to the tasks: the leading triples of what each\n\
              dW_t has outside of the common directions; dW = mean(all S) polar(U_cat) polar(V_cat)",
    parameters: &[number("fraction", Range::SHARE, 0.8, "share of the directions that is common")],
    example: "fraction: 0.8",
    ..METHOD
};

/// Iso-C.
pub struct IsoC;

impl Spectral for IsoC {
    fn new(_: &Values) -> std::result::Result<Self, String> {
        Ok(IsoC)
    }

    async fn merge<B: Backend>(
        &self,
        backend: &B,
        layer: &Matrices<'_, B::Tensor>,
        solver: Solver,
    ) -> Result<B::Tensor> {
        let total = sum(backend, layer.deltas)?;
        let Shape { rows, cols, .. } = total.shape();
        let (factor, nuclear_norm) = polar_of(backend, &total, solver).await?;
        super::elementwise::scaled(backend, factor, nuclear_norm / rows.min(cols).max(1) as f64)
    }
}

/// Iso-CTS.
pub struct IsoCts {
    fraction: f64,
}

/// Directions that are common, and those of each task; rounded half to even, as the released Python does.
pub fn split(directions: usize, tasks: usize, fraction: f64) -> (usize, usize) {
    let common = (directions as f64 * fraction) as usize;
    let specific = ((directions - common) as f64 / tasks as f64).round_ties_even() as usize;
    let specific = specific.min(directions / tasks.max(1));
    (directions - specific * tasks, specific)
}

impl Spectral for IsoCts {
    fn new(values: &Values) -> std::result::Result<Self, String> {
        Ok(IsoCts { fraction: values.number("fraction") })
    }

    async fn merge<B: Backend>(
        &self,
        backend: &B,
        layer: &Matrices<'_, B::Tensor>,
        solver: Solver,
    ) -> Result<B::Tensor> {
        let total = sum(backend, layer.deltas)?;
        let Shape { rows, cols, .. } = total.shape();
        let (common, specific) = split(rows.min(cols), layer.deltas.len(), self.fraction);
        let (mut us, mut vs, mut sigmas) = (Vec::new(), Vec::new(), Vec::new());
        let shared = if common > 0 { Some(triples(backend, &total, common, solver).await?) } else { None };
        if specific > 0 {
            for delta in layer.deltas {
                let mut own = backend.duplicate(delta)?;
                if let Some(shared) = &shared {
                    // D_t - U (U^T D_t)
                    let along = backend.matmul(&shared.u, Op::None, delta, Op::None)?;
                    backend.gemm(-1.0, &shared.u, Op::Transpose, &along, Op::None, 1.0, &mut own)?;
                }
                let own = triples(backend, &own, specific, solver).await?;
                us.push(own.u);
                vs.push(own.v);
                sigmas.push(own.sigma);
            }
        }
        if let Some(shared) = shared {
            us.push(shared.u);
            vs.push(shared.v);
            sigmas.push(shared.sigma);
        }
        let mut values = Vec::new();
        for sigma in &sigmas {
            values.extend(backend.download(sigma).await?);
        }
        let mean = values.iter().map(|&s| f64::from(s)).sum::<f64>() / values.len().max(1) as f64;
        let (u, _) = polar_of(backend, &stacked(backend, &us.iter().collect::<Vec<_>>())?, solver).await?;
        let (v, _) = polar_of(backend, &stacked(backend, &vs.iter().collect::<Vec<_>>())?, solver).await?;
        let mut merged = backend.zeros(Shape::matrix(rows, cols))?;
        backend.gemm(mean as f32, &u, Op::Transpose, &v, Op::None, 0.0, &mut merged)?;
        Ok(merged)
    }
}
