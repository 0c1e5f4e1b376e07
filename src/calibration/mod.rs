//! What is known of the inputs of a model's layers: the file format `esmerge-calibration-1`.
//!
//! One safetensors file an expert. For a weight `W` of `d_out x d_in`:
//!
//! | key | shape | content |
//! |---|---|---|
//! | `W.input` | `n x d_in` | every input token of the layer, f16 or f32 |
//! | `W.gram` | `d_in x d_in` | `X^T X` over `n` tokens, f32 |
//! | `W.mean` | `d_in` | the mean token, f32 (or f16) |
//!
//! Metadata, all strings: `format`; `n`, a JSON object of weight to number of tokens; `samples`; `alias`, a JSON
//! object of weight to the weight whose input it shares; and optionally `fingerprint`, the
//! [fingerprint](crate::checkpoint::fingerprint) of the expert's weights that the file covers, by their own input or by
//! another's.

mod capture;
mod error;
mod place;
mod reader;
mod writer;

pub use capture::{Capture, Captured, MAX_SIZE};
pub use error::Error;
pub use reader::{Calibration, Statistic, Values};
pub use writer::{Entry, Writer};

/// The value of `format` in the metadata.
pub const FORMAT: &str = "esmerge-calibration-1";
