//! Phi-3: Llama with fused layers.

use super::super::{Config, Result, Weights};
use super::decoder::Decoder;

pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Decoder> {
    Decoder { fused: true, ..Decoder::plain(config, weights)? }.windowed(config, |_| false)
}
