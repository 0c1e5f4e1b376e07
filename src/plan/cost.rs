//! What a layer costs, roughly: for the dry run and the progress bar.

use crate::linalg::Accuracy;
use serde::Serialize;

/// An estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: f64,
    /// Device memory at the peak.
    pub bytes: u64,
}

/// Steps of the polar iteration.
const POLAR_STEPS: f64 = 14.0;

/// Shapes of a layer that is decomposed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decomposed {
    pub tasks: usize,
    pub d_out: usize,
    pub d_in: usize,
    pub rank: usize,
    /// Rows of the matrix that the operator is applied through: tokens, or `d_in` without them.
    pub rows: usize,
    /// Values of calibration per task.
    pub calibration: usize,
}

impl Decomposed {
    /// Decomposed, and fused into one delta.
    pub(super) fn cost(&self, accuracy: Accuracy) -> Cost {
        let (t, m, d, r) = (self.tasks as f64, self.d_out as f64, self.d_in as f64, self.rank as f64);
        let polar = |a: f64, b: f64| POLAR_STEPS * 6.0 * a.max(b) * a.min(b).powi(2);
        let fuse = polar(t * r, m) + polar(t * r, d) + 2.0 * t * r * m * d;
        let Cost { flops, bytes } = self.without_fusion(accuracy);
        Cost { flops: flops + fuse, bytes }
    }

    /// Decomposed task by task.
    pub(super) fn without_fusion(&self, accuracy: Accuracy) -> Cost {
        let (t, m, d) = (self.tasks as f64, self.d_out as f64, self.d_in as f64);
        let (r, n) = (self.rank as f64, self.rows as f64);
        let shift = if self.calibration > 0 { 2.0 * n * m * d } else { 0.0 };
        let basis = match accuracy {
            // A symmetric eigenproblem of the smaller side.
            Accuracy::Exact => 2.0 * m * n * m.min(n) + 10.0 * m.min(n).powi(3),
            Accuracy::Balanced => 4.0 * 4.0 * m * n * 1.5 * r,
            Accuracy::Fast => 2.0 * 4.0 * m * n * 1.25 * r,
        };
        let project = 2.0 * r * m * d;
        let values = self.tasks * (self.d_out * self.d_in + self.calibration + self.rows * self.d_out)
            + 3 * self.tasks * self.rank * (self.d_out + self.d_in);
        Cost { flops: t * (shift + basis + project), bytes: 4 * values as u64 }
    }
}
