//! DINOv2: a ViT that scales the result of each half of a block, column by column.

use super::super::{Config, Error, Result, Weights, prefix_of};
use super::tower::{Head, Names, Tower};
use super::vision::Grid;
use super::vit;

const NAMES: Names = Names {
    norms: ["norm1", "norm2"],
    up: "mlp.fc1",
    down: "mlp.fc2",
    fused_gated: Some(["mlp.weights_in", "mlp.weights_out"]),
    scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
    ..vit::NAMES
};

pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Tower> {
    let prefix = prefix_of(weights, &["", "dinov2."], "embeddings.cls_token")
        .ok_or_else(|| Error::MissingTensor("embeddings.cls_token".into()))?;
    let hidden = config.size("hidden_size")?;
    let wide = (hidden as f64 * config.number_or("mlp_ratio", 4.0)?) as usize;
    let gated = config.flag("use_swiglu_ffn");
    Ok(Tower {
        prefix,
        names: &NAMES,
        grid: Grid { any_size: true, ..Grid::new(config)? },
        blocks: config.blocks("num_hidden_layers")?,
        hidden,
        // two thirds of the width, so that three layers have what two had
        wide: if gated { (2 * wide / 3).next_multiple_of(8) } else { wide },
        heads: config.heads(hidden)?.0,
        activation: config.activation("hidden_act", "gelu")?,
        epsilon: config.number_or("layer_norm_eps", 1e-6)? as f32,
        head: Head::Pooled,
        gated,
    })
}
