//! Weights on disk: safetensors in and out, folders, shards, and files that appear only when complete.
//!
//! This module knows bytes, names and shapes; what they mean is for others.

mod codes;
mod delta;
mod error;
mod extent;
mod file;
mod fingerprint;
mod gguf;
mod header;
pub mod journal;
mod lora;
mod magic;
mod meta;
mod mixtures;
mod model;
mod modules;
mod mxfp4;
mod output;
mod prefix;
mod quantised;
mod router;
mod rows;
mod scan;
pub(crate) mod settings;
mod sidecar;
mod sidecar_names;
mod slices;
mod sync;
mod temporary;
mod write;

pub use delta::{DeltaEntry, DeltaFile, DeltaMeta, DeltaPlace, DeltaWriter};
pub use error::Error;
pub use extent::Extent;
pub use file::TensorFile;
pub use fingerprint::fingerprint;
pub use lora::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraFile, LoraModule, LoraWeight, LoraWriter, PEFT_PREFIX, lora_keys,
    module_of,
};
pub use meta::{Kind, TensorMeta, kind, stored};
pub use mixtures::{
    RENAMED as MIXTURES_RENAMED, Regrouped, SPELLINGS as MIXTURE_SPELLINGS, Spelling as MixtureSpelling,
    regrouped,
};
pub(crate) use model::missing_shard;
#[cfg(feature = "cli")]
pub(crate) use model::shards_of;
pub use model::{Checkpoint, weights_file};
pub use modules::{ModuleNames, stores_transposed};
pub use output::OutputDir;
pub use prefix::Prefix;
pub use router::{ADAPTERS, ROUTER, RouterFile, RouterMeta, RouterWriter, names_adapter};
pub use rows::{Row, Table};
pub use safetensors::Dtype as Stored;
pub use scan::{first_not_finite, sum_of_squared_ulps, widen};
pub use sidecar::{Sidecars, hub_repository};
#[cfg(feature = "cli")]
pub(crate) use sidecar_names::belongs;
pub(crate) use sidecar_names::is_weights;
pub use slices::{slice_name, slice_of};
pub(crate) use sync::rename;
#[cfg(feature = "cli")]
pub(crate) use temporary::bytes_in;
use temporary::keep;
pub(crate) use temporary::parent;
pub use temporary::{Left, Temporary, remove_all};
pub use write::{Shard, TensorSpec, TensorWriter, aligned_order, index, shards, stem};
