//! SigLIP's vision tower: no class token; a learned query attends to the patches.

use super::super::{Config, Error, Result, Weights, prefix_of};
use super::tower::{Head, Names, QkvNames, Tower};
use super::vision::Grid;

const NAMES: Names = Names {
    patches: "embeddings.patch_embedding.weight",
    bias: Some("embeddings.patch_embedding.bias"),
    class: None,
    positions: ("embeddings.position_embedding.weight", 0),
    norm_before: None,
    norm_after: "post_layernorm",
    blocks: "encoder.layers",
    qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    out: "self_attn.out_proj",
    norms: ["layer_norm1", "layer_norm2"],
    up: "mlp.fc1",
    down: "mlp.fc2",
    fused_gated: None,
    scales: None,
};

pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Tower> {
    let config = config.object("vision_config").unwrap_or(config);
    let prefix = prefix_of(weights, &["vision_model.", ""], "embeddings.patch_embedding.weight")
        .ok_or_else(|| Error::MissingTensor("vision_model.embeddings.patch_embedding.weight".into()))?;
    let hidden = config.size_or("hidden_size", 768)?;
    let probed = weights.shape(&format!("{prefix}head.probe")).is_some();
    let (heads, _) = config.heads_or(hidden, 12)?;
    Ok(Tower {
        prefix,
        names: &NAMES,
        grid: Grid::with_defaults(config, 224, 16)?,
        blocks: config.size_or("num_hidden_layers", 12)?,
        hidden,
        wide: config.size_or("intermediate_size", 3072)?,
        heads,
        activation: config.activation("hidden_act", "gelu_pytorch_tanh")?,
        epsilon: config.number_or("layer_norm_eps", 1e-6)? as f32,
        head: if probed { Head::Probed } else { Head::Pooled },
        gated: false,
    })
}
