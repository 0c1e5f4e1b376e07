//! Llama, and Mistral, whose blocks may all have a sliding window.

use super::super::{Config, Result, Weights};
use super::decoder::Decoder;

pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Decoder> {
    let decoder = Decoder::plain(config, weights)?;
    let sliding = config.text("model_type") == Some("mistral");
    decoder.windowed(config, |_| !sliding)
}
