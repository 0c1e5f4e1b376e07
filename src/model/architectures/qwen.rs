//! Qwen2, and Qwen3, which norms every head of queries and keys.

use super::super::{Config, Result, Weights};
use super::decoder::Decoder;

pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Decoder> {
    let decoder = Decoder {
        head_norms: config.text("model_type") == Some("qwen3"),
        ..Decoder::plain(config, weights)?
    };
    if !config.flag("use_sliding_window") {
        return Ok(decoder);
    }
    let first = config.index_or("max_window_layers", 28)?;
    decoder.windowed(config, |i| i < first)
}
