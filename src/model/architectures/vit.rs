//! ViT, as Hugging Face's `vit`: `google/vit-base-patch16-224` and its kin.

use super::super::{Config, Error, Result, Weights, prefix_of};
use super::tower::{Head, Names, QkvNames, Tower};
use super::vision::Grid;

pub const NAMES: Names = Names {
    patches: "embeddings.patch_embeddings.projection.weight",
    bias: Some("embeddings.patch_embeddings.projection.bias"),
    class: Some(("embeddings.cls_token", 2)),
    positions: ("embeddings.position_embeddings", 1),
    norm_before: None,
    norm_after: "layernorm",
    blocks: "encoder.layer",
    qkv: QkvNames::Separate([
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
    ]),
    out: "attention.output.dense",
    norms: ["layernorm_before", "layernorm_after"],
    up: "intermediate.dense",
    down: "output.dense",
    fused_gated: None,
    scales: None,
};

pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Tower> {
    let prefix = prefix_of(weights, &["vit.", ""], "embeddings.cls_token")
        .ok_or_else(|| Error::MissingTensor("vit.embeddings.cls_token".into()))?;
    let hidden = config.size("hidden_size")?;
    Ok(Tower {
        prefix,
        names: &NAMES,
        grid: Grid::new(config)?,
        blocks: config.blocks("num_hidden_layers")?,
        hidden,
        wide: config.size("intermediate_size")?,
        heads: config.heads(hidden)?.0,
        activation: config.activation("hidden_act", "gelu")?,
        epsilon: config.number_or("layer_norm_eps", 1e-12)? as f32,
        head: Head::Pooled,
        gated: false,
    })
}
