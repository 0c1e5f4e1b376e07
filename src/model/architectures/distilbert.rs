//! DistilBERT: BERT without token types, under names of its own.

use super::super::{Config, Error, Result, Weights, prefix_of};
use super::encoder::{Encoder, Names};

const NAMES: Names = Names {
    blocks: "transformer.layer",
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    feed_forward_norm: "output_layer_norm",
};

pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Encoder> {
    let prefix = prefix_of(weights, &["", "distilbert."], "embeddings.word_embeddings.weight")
        .ok_or_else(|| Error::MissingTensor("embeddings.word_embeddings.weight".into()))?;
    let (hidden, heads) = (config.size("dim")?, config.size("n_heads")?);
    if !hidden.is_multiple_of(heads) {
        return Err(Error::Config(format!("dim {hidden} is no multiple of {heads} heads (`n_heads`)")));
    }
    Ok(Encoder {
        prefix,
        names: &NAMES,
        blocks: config.blocks("n_layers")?,
        hidden,
        wide: config.size("hidden_dim")?,
        heads,
        vocabulary: config.size("vocab_size")?,
        types: None,
        causal: false,
        positions: config.size("max_position_embeddings")?,
        first_position: 0,
        activation: config.activation("activation", "gelu")?,
        epsilon: 1e-12,
    })
}
