//! CLIP's vision tower, under the names of Hugging Face and of OpenCLIP and OpenAI.

use super::super::{Config, Error, Result, Weights, prefix_of};
use super::tower::{Head, Names, Projection, QkvNames, Tower};
use super::vision::Grid;
use crate::backend::layers::Activation;

const HUGGING_FACE: Names = Names {
    patches: "embeddings.patch_embedding.weight",
    bias: None,
    class: Some(("embeddings.class_embedding", 0)),
    positions: ("embeddings.position_embedding.weight", 0),
    // the misspelling is the library's
    norm_before: Some("pre_layrnorm"),
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

/// With the fused `in_proj_weight` of `torch.nn.MultiheadAttention`.
const OPEN: Names = Names {
    patches: "conv1.weight",
    class: Some(("class_embedding", 0)),
    positions: ("positional_embedding", 0),
    norm_before: Some("ln_pre"),
    norm_after: "ln_post",
    blocks: "transformer.resblocks",
    qkv: QkvNames::Fused("attn.in_proj_weight", "attn.in_proj_bias"),
    out: "attn.out_proj",
    norms: ["ln_1", "ln_2"],
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    ..HUGGING_FACE
};

/// Hugging Face keeps it beside the tower, not inside.
const PROJECTION: &str = "visual_projection.weight";

pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Tower> {
    let open_prefixes = ["visual.", "model.visual.", "module.visual.", ""];
    if let Some(prefix) = prefix_of(weights, &open_prefixes, "transformer.resblocks.0.attn.in_proj_weight") {
        return open(config, weights, prefix);
    }
    let Some(prefix) = prefix_of(weights, &["", "vision_model."], "encoder.layers.0.self_attn.q_proj.weight")
    else {
        return Err(Error::MissingTensor("vision_model.encoder.layers.0.self_attn.q_proj.weight".into()));
    };
    let outer = config;
    let config = config.object("vision_config").unwrap_or(config);
    let hidden = config.size("hidden_size")?;
    let projection = match weights.shape(PROJECTION) {
        None => None,
        Some(_) => {
            let size = outer.size_or("projection_dim", 512)?;
            Some(Projection { name: PROJECTION.to_owned(), size, across: false })
        }
    };
    Ok(Tower {
        prefix,
        names: &HUGGING_FACE,
        grid: Grid::new(config)?,
        blocks: config.blocks("num_hidden_layers")?,
        hidden,
        wide: config.size("intermediate_size")?,
        heads: config.heads(hidden)?.0,
        activation: config.activation("hidden_act", "quick_gelu")?,
        epsilon: config.number_or("layer_norm_eps", 1e-5)? as f32,
        head: Head::Projected(projection),
        gated: false,
    })
}

/// From `open_clip_config.json`, or from a Hugging Face configuration of the same model.
fn open(config: Config<'_>, weights: &dyn Weights, prefix: &'static str) -> Result<Tower> {
    let shape = |name: &str| {
        let name = format!("{prefix}{name}");
        weights.shape(&name).filter(|s| !s.is_empty()).ok_or(Error::MissingTensor(name))
    };
    // the tensors say every size but that of a head
    let convolution = shape("conv1.weight")?;
    let (hidden, channels, patch) = match convolution[..] {
        [hidden, channels, patch, columns] if patch == columns && hidden > 0 => (hidden, channels, patch),
        _ => {
            return Err(Error::Config(format!(
                "{prefix}conv1.weight has shape {convolution:?}; [width, channels, patch, patch] is expected"
            )));
        }
    };
    let positions = shape("positional_embedding")?[0];
    let grid = Grid::checked(channels, patch.saturating_mul(positions.saturating_sub(1).isqrt()), patch)?;
    let wide = shape("transformer.resblocks.0.mlp.c_fc.weight")?[0];
    let blocks = (0..)
        .take_while(|i| shape(&format!("transformer.resblocks.{i}.attn.in_proj_weight")).is_ok())
        .count();
    let model = config.object("model_cfg");
    let vision = model.and_then(|m| m.object("vision_cfg")).or(config.object("vision_config"));
    let heads = match vision {
        Some(vision) if vision.get("num_attention_heads").is_some() => vision.heads(hidden)?.0,
        Some(vision) => hidden / vision.size_or("head_width", 64)?,
        None => hidden / 64,
    };
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(Error::Config(format!("a width of {hidden} does not divide into {heads} heads")));
    }
    let quick = match (model, vision) {
        (Some(model), _) => model.flag("quick_gelu"),
        (None, Some(vision)) => vision.activation("hidden_act", "quick_gelu")? == Activation::QuickGelu,
        (None, None) => true,
    };
    let projection = shape("proj").ok().map(|s| Projection {
        name: format!("{prefix}proj"),
        size: s.last().copied().unwrap_or(0),
        across: true,
    });
    Ok(Tower {
        prefix,
        names: &OPEN,
        grid,
        blocks,
        hidden,
        wide,
        heads,
        activation: if quick { Activation::QuickGelu } else { Activation::Gelu },
        epsilon: 1e-5,
        head: Head::Projected(projection),
        gated: false,
    })
}
