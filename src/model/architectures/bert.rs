//! BERT and its kin: MiniLM, RoBERTa, XLM-RoBERTa.

use super::super::{Config, Error, Result, Weights, prefix_of};
use super::encoder::{Encoder, Names};

const NAMES: Names = Names {
    blocks: "encoder.layer",
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    feed_forward_norm: "output.LayerNorm",
};

pub fn bert(config: Config<'_>, weights: &dyn Weights) -> Result<Encoder> {
    new(config, weights, 0)
}

/// RoBERTa counts positions from the one after padding's.
pub fn roberta(config: Config<'_>, weights: &dyn Weights) -> Result<Encoder> {
    new(config, weights, config.index_or("pad_token_id", 1)? + 1)
}

fn new(config: Config<'_>, weights: &dyn Weights, first_position: usize) -> Result<Encoder> {
    if let Some(other) = config.text("position_embedding_type").filter(|t| *t != "absolute") {
        let found = format!("`position_embedding_type: {other}` is not absolute");
        return Err(Error::Unsupported { found });
    }
    let prefix = prefix_of(weights, &["", "bert.", "roberta."], "embeddings.word_embeddings.weight")
        .ok_or_else(|| Error::MissingTensor("embeddings.word_embeddings.weight".into()))?;
    let hidden = config.size("hidden_size")?;
    Ok(Encoder {
        prefix,
        names: &NAMES,
        blocks: config.blocks("num_hidden_layers")?,
        hidden,
        wide: config.size("intermediate_size")?,
        heads: config.heads(hidden)?.0,
        vocabulary: config.size("vocab_size")?,
        types: Some(config.size_or("type_vocab_size", 2)?),
        causal: config.flag("is_decoder"),
        positions: config.size("max_position_embeddings")?,
        first_position,
        activation: config.activation("hidden_act", "gelu")?,
        epsilon: config.number_or("layer_norm_eps", 1e-12)? as f32,
    })
}
