//! Forward passes, block by block: the weights of one block and the hidden states of the samples are all that is in
//! memory.
//!
//! An architecture is one file under `architectures/`: it reads its configuration and says how samples are embedded,
//! which tensors make a block, and how the last hidden state becomes features. Files and devices are others' business:
//! weights come through [`Weights`], arithmetic goes through [`Layers`](crate::backend::layers::Layers).

mod architectures;
mod block;
mod config;
mod error;
mod finite;
mod forward;
mod gated;
mod inputs;
mod mixture;
mod samples;
mod weights;

pub use architectures::{Architecture, Grid, SUPPORTED};
pub use block::{After, Block, FeedForward, Linear, Norm, Order, Qkv, SelfAttention};
pub use config::Config;
pub use error::{Error, Result};
pub(crate) use finite::not_finite;
pub use forward::{Hidden, Model, NoTap, Part, Tap};
pub use gated::{Gated, WayIn};
pub use inputs::InputKind;
pub use mixture::Mixture;
pub use samples::{Images, Pooling, Samples, Tokens};
pub use weights::{Loader, Stored, Weights, WeightsError, prefix_of};
