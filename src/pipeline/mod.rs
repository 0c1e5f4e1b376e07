//! Carries out a plan: read, upload, compute, download, write.
//!
//! One layer is in memory at a time, with all its experts, or a batch of small ones; nothing needs the whole model. The merged
//! deltas of decomposed layers go to a file, in f32, and the weights are made from them once every layer's norm is known.

mod assemble;
mod batches;
mod capture;
mod decompose;
mod error;
mod experts;
mod inputs;
mod members;
mod merge;
mod modules;
mod not_finite;
mod outputs;
mod progress;
mod rescale;
mod rounding;
mod search;
mod spill;
mod summary;
mod sums;
mod variances;
mod weights;

pub use error::Error;
pub use merge::{Options, check_files_beside, merge};
pub use outputs::check_keep_delta;
pub use progress::{Progress, Silent};
pub use rescale::{Rescale, rescale};

use crate::method::EsmOptions;
use crate::plan::{Family, Plan};
use crate::recipe::{Method, Recipe};

/// Everything that the steps of a merge share.
struct Job<'a, B> {
    backend: &'a B,
    recipe: &'a Recipe,
    family: &'a Family,
    plan: &'a Plan,
}

impl<B> Job<'_, B> {
    fn esm_options(&self) -> Option<&EsmOptions> {
        match &self.recipe.method {
            Method::Esm(esm) => Some(&esm.options),
            _ => None,
        }
    }
}
