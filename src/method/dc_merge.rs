//! DC-Merge: a few large entries of the tasks' directions, in bases that are shared.

use super::Solver;
use super::held::Held;
use super::ranks::{self, Deltas};
use super::spectral::{Matrices, Spectral, batched, polar_of, scaled_rows, stacked, triples};
use super::table::{Base, Calibration, Description, Kind, Range, Strength, number, word};
use super::values::Values;
use crate::backend::{Across, Backend, Cut, Divide, Op, Result, Shape, Tensor};

/// `dc_merge`
pub const METHOD: Description = Description {
    name: "dc_merge",
    line: "merges leading singular directions by ties in an orthonormal basis of all of them",
    formula: "dW_t ~ U_t diag(s_t) V_t^T of rank r = floor(min(d)/T), s smoothed with its sum kept; U* = polar[U_1..U_T], V* alike;\n\
              M_t = U*^T D_t V*; the largest share `density` of |M_t| is kept; the sign of the sum is elected and what agrees\n\
              averaged; of that the T diagonal blocks: dW = U* M V*^T",
    source: "arXiv 2603.06242",
    kind: Kind::Spectral,
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[
        word(
            "smoothing",
            &["none", "average", "linear"],
            "singular values as they are, all equal, or on a line",
        ),
        number("density", Range::SHARE, 0.001, "share of entries that is kept"),
    ],
    example: "smoothing: average",
};

/// DC-Merge.
pub struct DcMerge {
    smoothing: &'static str,
    density: f64,
}

impl DcMerge {
    /// Singular values, smoothed with their sum kept.
    fn smoothed(&self, sigma: &[f64]) -> Vec<f64> {
        let (sum, n) = (sigma.iter().sum::<f64>(), sigma.len());
        match self.smoothing {
            "average" => vec![sum / n.max(1) as f64; n],
            "linear" => {
                let (first, last) =
                    (sigma.first().copied().unwrap_or(0.0), sigma.last().copied().unwrap_or(0.0));
                let top = if last > 0.0 { (first / last).min(5.0) } else { 5.0 };
                let at = |i: usize| top + (1.0 - top) * i as f64 / (n.max(2) - 1) as f64;
                let total: f64 = (0..n).map(at).sum();
                (0..n).map(|i| at(i) * sum / total).collect()
            }
            _ => sigma.to_vec(),
        }
    }
}

impl Spectral for DcMerge {
    fn new(values: &Values) -> std::result::Result<Self, String> {
        Ok(DcMerge { smoothing: values.word("smoothing"), density: values.number("density") })
    }

    async fn merge<B: Backend>(
        &self,
        backend: &B,
        layer: &Matrices<'_, B::Tensor>,
        solver: Solver,
    ) -> Result<B::Tensor> {
        let tasks = layer.deltas.len();
        let Shape { rows, cols, .. } = layer.deltas.first().map_or(Shape::new(1, 0, 0), Tensor::shape);
        let rank = (rows.min(cols) / tasks.max(1)).max(1);
        let (mut us, mut vs, mut weighed) = (Vec::new(), Vec::new(), Vec::new());
        for delta in layer.deltas {
            let own = triples(backend, delta, rank, solver).await?;
            let sigma: Vec<f64> = backend.download(&own.sigma).await?.iter().map(|&s| f64::from(s)).collect();
            weighed.push(scaled_rows(backend, backend.duplicate(&own.v)?, &self.smoothed(&sigma))?);
            us.push(own.u);
            vs.push(own.v);
        }
        let (u, _) = polar_of(backend, &stacked(backend, &us.iter().collect::<Vec<_>>())?, solver).await?;
        let (v, _) = polar_of(backend, &stacked(backend, &vs.iter().collect::<Vec<_>>())?, solver).await?;
        let core = |(own, weighed): (&B::Tensor, &B::Tensor)| {
            let left = backend.matmul(&u, Op::None, own, Op::Transpose)?; // U* U_t^T: rT x r
            let right = backend.matmul(weighed, Op::None, &v, Op::Transpose)?; // diag(s) V_t V*^T: r x rT
            backend.matmul(&left, Op::None, &right, Op::None)
        };
        let cores = us.iter().zip(&weighed).map(core).collect::<Result<Vec<_>>>()?;
        let size = rank * tasks;
        let mut held = Held::rows(backend, batched(backend, &cores)?)?;
        let k = super::ties::kept(self.density, size * size);
        let cuts = ranks::cuts::<B, _>(backend, &mut held, &Deltas, &vec![vec![k]; tasks]).await?;
        let mut kept = held.into_slab().deltas;
        backend.trim(&mut kept, None, &cuts.iter().map(|cuts| (cuts[0], Cut::START)).collect::<Vec<_>>())?;
        let ones = vec![1.0; 2 * tasks];
        let merged = backend.across(&kept, Across::Elect { factors: &ones, divide: Divide::UnlessZero })?;
        let merged = merged.reshape(Shape::matrix(size, size))?;
        let mut blocks = backend.zeros(Shape::matrix(size, size))?;
        for t in 0..tasks {
            let at = [0, t * rank, t * rank];
            backend.copy_block(&merged, at, &mut blocks, at, [1, rank, rank])?;
        }
        let right = backend.matmul(&blocks, Op::None, &v, Op::None)?;
        backend.matmul(&u, Op::Transpose, &right, Op::None)
    }
}
