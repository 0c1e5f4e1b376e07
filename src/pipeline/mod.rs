//! Carries out a plan: read, upload, compute, download, write.
//!
//! One layer is in memory at a time, with all its experts, or a batch of small ones; nothing needs the whole model. The merged
//! deltas of decomposed layers are put aside, in f32, and the weights are made from them once every layer's norm is known. A
//! budget says how much memory they may take; past it they go to a file. It also bounds what a thread reads ahead while the
//! device works, and what waits for another to write it.

mod adapters;
mod assemble;
mod batches;
mod candidate;
mod capture;
mod decompose;
mod error;
mod experts;
mod extract;
mod faults;
mod flow;
mod heads;
mod inputs;
mod inspect;
mod journal;
mod low_rank;
mod members;
mod merge;
mod modules;
mod not_finite;
mod outputs;
mod progress;
mod reader;
mod rescale;
mod rounding;
mod search;
mod shares;
mod slabs;
mod spill;
mod stacks;
mod store;
mod summary;
mod sums;
mod variances;
mod weights;
mod writer;

pub use error::Error;
pub use extract::{Extract, extract};
pub use flow::room_for_deltas;
pub use heads::check_heads;
pub use inspect::inspect;
pub use journal::{Output, Space, identity, space};
pub use merge::{Options, Share, ShareDone, check_files_beside, check_share, merge, merge_share};
pub use outputs::check_keep_delta;
pub use progress::{Progress, Silent};
pub use rescale::{Rescale, rescale};
pub use spill::delta_bytes;

use faults::Faults;

use crate::method::ties::OfModel;
use crate::method::{EsmOptions, Preset, Streamed};
use crate::plan::{Family, Plan};
use crate::recipe::{Method, Recipe};
use std::rc::Rc;

/// Everything that the steps of a merge share.
struct Job<'a, B> {
    backend: &'a B,
    recipe: &'a Recipe,
    family: &'a Family,
    plan: &'a Plan,
    /// What `ties` with `scope: model` knows of all tensors.
    of_model: Option<&'a Rc<OfModel>>,
    /// What has gone wrong on the device.
    faults: &'a Faults,
}

impl<B> Job<'_, B> {
    /// How a tensor is merged element by element.
    fn streamed(&self, tensor: &str) -> Result<Streamed, Error> {
        let values = self.recipe.method.elementwise().map(|tabled| {
            let mut values = self.recipe.values(tabled, tensor, self.plan.place(tensor));
            values.of_model = self.of_model.cloned();
            values
        });
        self.recipe
            .streamed(values.as_ref())
            .map_err(|reason| Error::Parameters { tensor: tensor.to_owned(), reason })
    }

    fn esm_options(&self) -> Option<&EsmOptions> {
        match &self.recipe.method {
            Method::Esm(esm) => Some(&esm.options),
            _ => None,
        }
    }

    fn esm_preset(&self) -> Option<Preset> {
        match &self.recipe.method {
            Method::Esm(esm) => Some(esm.preset),
            _ => None,
        }
    }
}
