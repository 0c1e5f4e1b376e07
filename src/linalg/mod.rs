//! Algorithms over a [`Backend`](crate::backend::Backend): orthonormalisation, leading eigenvectors, polar factor.
//!
//! Bases are kept as ROWS: a basis of `k` vectors in dimension `d` is `k x d`. Concatenating the bases of T tasks is
//! then a reshape of `T x k x d` to `1 x Tk x d`, and costs nothing.

mod chebyshev;
mod eigen;
mod host;
mod orthonormalize;
mod polar;
mod probes;
mod rational;
mod singular;
mod standing;
mod subspace;
mod triangular;
mod unit;

pub use eigen::{
    Eigenpairs, NULL_EIGENVALUE, PendingEigenpairs, SymmetricProduct, energy_retention, leading_eigenpairs,
    pending_eigenpairs,
};
pub use orthonormalize::{append_block, orthonormalize_rows, qr_rows};
pub use polar::{CHECKS, NULL_SINGULAR_VALUE, PendingPolar, Polar, pending_polar, polar, unfinished};
pub use singular::singular_values;
pub use triangular::triangular_factor;

use std::fmt;
use std::str::FromStr;

/// How much accuracy is bought with how much time. `docs/numerics.md` has the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Accuracy {
    /// Parity with a float64 implementation: eigenvectors from an f64 eigendecomposition on the host.
    Exact,
    /// Randomized subspace iteration on the device; its error is far below the effect of choosing other proxies.
    #[default]
    Balanced,
    /// Fewer iterations and less oversampling.
    Fast,
}

/// What an [`Accuracy`] means for the algorithms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Oversampling: the block has `rank + max(rank * oversampling, 8)` vectors, and up to three more for whole fours.
    pub oversampling: f64,
    /// Applications of the operator to the random block before the first look at it.
    pub iterations: usize,
    /// Root mean square of the tangents between wanted directions and those that are found, at most.
    pub tolerance: f64,
}

impl Accuracy {
    /// Its settings; [`Accuracy::Exact`] does not iterate for eigenvectors.
    pub(crate) fn effort(self) -> Effort {
        match self {
            Accuracy::Exact => Effort { oversampling: 1.0, iterations: 8, tolerance: 1e-6 },
            Accuracy::Balanced => Effort { oversampling: 0.5, iterations: 4, tolerance: 1e-4 },
            Accuracy::Fast => Effort { oversampling: 0.25, iterations: 2, tolerance: 0.1 },
        }
    }
}

impl FromStr for Accuracy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "exact" => Ok(Accuracy::Exact),
            "balanced" => Ok(Accuracy::Balanced),
            "fast" => Ok(Accuracy::Fast),
            other => Err(format!("unknown accuracy '{other}': use exact, balanced or fast")),
        }
    }
}

impl fmt::Display for Accuracy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accuracy::Exact => "exact",
            Accuracy::Balanced => "balanced",
            Accuracy::Fast => "fast",
        })
    }
}
