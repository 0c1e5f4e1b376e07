//! Gemma: norms of `1 + w`, scaled embeddings; Gemma 2 and 3 norm the halves of a block on both sides, and every so many blocks one
//! sees all tokens.

use super::super::{Config, Error, Result, Weights};
use super::decoder::Decoder;
use super::rope::Rope;

const PREFIXES: [&str; 4] = ["model.", "", "model.language_model.", "language_model.model."];

pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Decoder> {
    // of a model that sees, too, the part that reads
    let config = config.object("text_config").unwrap_or(config);
    if config.flag("use_bidirectional_attention") {
        let found = "a Gemma with `use_bidirectional_attention: true` cannot be run".into();
        return Err(Error::Unsupported { found });
    }
    let decoder = Decoder::found_at(config, weights, &PREFIXES)?;
    let activation = match config.text("hidden_activation") {
        Some(_) => config.activation("hidden_activation", "gelu_pytorch_tanh")?,
        // older configurations say `gelu` and mean this
        None => crate::backend::layers::Activation::GeluTanh,
    };
    let decoder = Decoder {
        activation,
        norms_from_one: true,
        embedding_scale: (decoder.hidden as f32).sqrt(),
        ..decoder
    };
    let kind = config.text("model_type").unwrap_or_default();
    if kind == "gemma" {
        return Ok(decoder);
    }
    let cap = config.number_or("attn_logit_softcapping", 0.0)?;
    let scale = config.number_or("query_pre_attn_scalar", 256.0)?;
    let decoder = Decoder {
        sandwiched: true,
        scale: (scale as f32).sqrt().recip(),
        cap: (cap > 0.0).then_some(cap as f32),
        ..decoder
    };
    if kind == "gemma2" {
        return decoder.windowed(config, |i| i % 2 == 1);
    }
    let every = config.size_or("sliding_window_pattern", 6)?;
    let mut decoder = Decoder {
        head_norms: true,
        ropes: vec![
            Rope::of_kind(config, "full_attention", decoder.head_dim, config.number_or("rope_theta", 1e6)?)?,
            Rope::of_kind(
                config,
                "sliding_attention",
                decoder.head_dim,
                config.number_or("rope_local_base_freq", 1e4)?,
            )?,
        ],
        ..decoder
    }
    .windowed(config, |i| (i + 1) % every == 0)?;
    for block in &mut decoder.blocks {
        block.rope = usize::from(block.window.is_some());
    }
    Ok(decoder)
}
