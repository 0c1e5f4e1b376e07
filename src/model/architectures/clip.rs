//! CLIP's vision tower, under the names of Hugging Face and of OpenCLIP and OpenAI.

use super::super::{
    Block, Config, Error, FeedForward, InputKind, Linear, Loader, Order, Part, Pooling, Qkv, Result, Samples,
    SelfAttention, Weights, prefix_of,
};
use super::vision::{Grid, ImageEmbedding, embed};
use super::{Architecture, pool};
use crate::backend::Op;
use crate::backend::layers::{Activation, Attention, Layers};

/// Sizes and naming of a vision tower.
pub struct Clip {
    naming: Naming,
    prefix: &'static str,
    grid: Grid,
    blocks: usize,
    hidden: usize,
    wide: usize,
    heads: usize,
    projection: usize,
    /// Width of a feature: that of the projection, or of the hidden state where there is none.
    features: usize,
    activation: Activation,
    epsilon: f32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    HuggingFace,
    /// The fused `in_proj_weight` of `torch.nn.MultiheadAttention`.
    Open,
}

const HUGGING_FACE: [&str; 2] = ["", "vision_model."];
/// Hugging Face keeps it beside the tower, not inside.
const PROJECTION: &str = "visual_projection.weight";
const OPEN: [&str; 4] = ["visual.", "model.visual.", "module.visual.", ""];

impl Clip {
    pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Clip> {
        if let Some(prefix) = prefix_of(weights, &OPEN, "transformer.resblocks.0.attn.in_proj_weight") {
            return Clip::open(config, weights, prefix);
        }
        let Some(prefix) = prefix_of(weights, &HUGGING_FACE, "encoder.layers.0.self_attn.q_proj.weight")
        else {
            return Err(Error::MissingTensor("vision_model.encoder.layers.0.self_attn.q_proj.weight".into()));
        };
        let outer = config;
        let config = config.object("vision_config").unwrap_or(config);
        let hidden = config.size("hidden_size")?;
        let projection = outer.size_or("projection_dim", 512)?;
        Ok(Clip {
            naming: Naming::HuggingFace,
            prefix,
            grid: Grid::new(config)?,
            blocks: config.size("num_hidden_layers")?,
            hidden,
            wide: config.size("intermediate_size")?,
            heads: config.heads(hidden)?.0,
            projection,
            features: if weights.shape(PROJECTION).is_some() { projection } else { hidden },
            activation: config.activation("hidden_act", "quick_gelu")?,
            epsilon: config.number_or("layer_norm_eps", 1e-5)? as f32,
        })
    }

    /// From `open_clip_config.json`, or from a Hugging Face configuration of the same model.
    fn open(config: Config<'_>, weights: &dyn Weights, prefix: &'static str) -> Result<Clip> {
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
        let projection = shape("proj").map_or(0, |s| s.last().copied().unwrap_or(0));
        Ok(Clip {
            naming: Naming::Open,
            prefix,
            grid,
            blocks,
            hidden,
            wide,
            heads,
            projection,
            features: if projection > 0 { projection } else { hidden },
            activation: if quick { Activation::QuickGelu } else { Activation::Gelu },
            epsilon: 1e-5,
        })
    }

    fn load<'a, B: Layers>(&'a self, backend: &'a B, weights: &'a dyn Weights) -> Loader<'a, B> {
        Loader::new(backend, weights, self.prefix)
    }

    fn names(&self) -> Names {
        match self.naming {
            Naming::HuggingFace => Names {
                // the misspelling is the library's
                norm_before: "pre_layrnorm",
                norm_after: "post_layernorm",
                class: "embeddings.class_embedding",
                patches: "embeddings.patch_embedding.weight",
                positions: "embeddings.position_embedding.weight",
            },
            Naming::Open => Names {
                norm_before: "ln_pre",
                norm_after: "ln_post",
                class: "class_embedding",
                patches: "conv1.weight",
                positions: "positional_embedding",
            },
        }
    }
}

/// Tensors outside the blocks.
struct Names {
    norm_before: &'static str,
    norm_after: &'static str,
    class: &'static str,
    patches: &'static str,
    positions: &'static str,
}

impl<B: Layers> Architecture<B> for Clip {
    fn blocks(&self) -> usize {
        self.blocks
    }

    fn hidden_size(&self) -> usize {
        self.hidden
    }

    fn feature_size(&self) -> usize {
        self.features
    }

    fn widest(&self) -> usize {
        self.wide.max(3 * self.hidden)
    }

    fn inputs(&self) -> InputKind {
        InputKind::Images { grid: self.grid, tokens: self.grid.patches() + 1 }
    }

    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>> {
        let (load, names, d) = (self.load(backend, weights), self.names(), self.hidden);
        let embedding = ImageEmbedding {
            patches: load.patch_weight(names.patches, d, self.grid.channels, self.grid.patch)?,
            bias: None,
            class: load.vector(names.class, d)?,
            positions: load.matrix(names.positions, self.grid.patches() + 1, d)?,
        };
        let part = embed(backend, self.grid, &embedding, samples)?;
        let norm = load.layer_norm(names.norm_before, d, self.epsilon)?;
        Ok(Part { hidden: norm.apply(backend, &part.hidden)?, ..part })
    }

    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>> {
        let (load, d, epsilon) = (self.load(backend, weights), self.hidden, self.epsilon);
        let (at, norms, [up, down], out) = match self.naming {
            Naming::HuggingFace => (
                format!("encoder.layers.{index}"),
                ["layer_norm1", "layer_norm2"],
                ["mlp.fc1", "mlp.fc2"],
                "self_attn.out_proj",
            ),
            Naming::Open => (
                format!("transformer.resblocks.{index}"),
                ["ln_1", "ln_2"],
                ["mlp.c_fc", "mlp.c_proj"],
                "attn.out_proj",
            ),
        };
        let linear = |name: &str, d_in, d_out| -> Result<Linear<B>> {
            load.linear(&format!("{at}.{name}"), d_in, d_out)
        };
        let qkv = match self.naming {
            Naming::HuggingFace => Qkv::Separate([
                linear("self_attn.q_proj", d, d)?,
                linear("self_attn.k_proj", d, d)?,
                linear("self_attn.v_proj", d, d)?,
            ]),
            Naming::Open => Qkv::Fused(load.linear_named(
                &format!("{at}.attn.in_proj_weight"),
                &format!("{at}.attn.in_proj_bias"),
                d,
                3 * d,
            )?),
        };
        Ok(Block {
            order: Order::NormFirst,
            attention: SelfAttention {
                qkv,
                out: linear(out, d, d)?,
                attention: encoder_attention(d, self.heads),
            },
            attention_norm: load.layer_norm(&format!("{at}.{}", norms[0]), d, epsilon)?,
            feed_forward: FeedForward::Plain {
                up: linear(up, d, self.wide)?,
                down: linear(down, self.wide, d)?,
                activation: self.activation,
            },
            feed_forward_norm: load.layer_norm(&format!("{at}.{}", norms[1]), d, epsilon)?,
        })
    }

    /// The class token after its norm and, where the model has one, the projection. A CLIP model pools no other way.
    fn features(
        &self,
        backend: &B,
        weights: &dyn Weights,
        part: &Part<B>,
        _pooling: Option<Pooling>,
    ) -> Result<B::Tensor> {
        let load = self.load(backend, weights);
        let class = pool(backend, &part.hidden, part, Pooling::First)?;
        let class =
            load.layer_norm(self.names().norm_after, self.hidden, self.epsilon)?.apply(backend, &class)?;
        if self.naming == Naming::Open {
            if !load.has("proj") {
                return Ok(class);
            }
            let projection = load.matrix("proj", self.hidden, self.projection)?;
            return Ok(backend.matmul(&class, Op::None, &projection, Op::None)?);
        }
        let outer = Loader::new(backend, weights, "");
        if !outer.has(PROJECTION) {
            return Ok(class);
        }
        let projection = outer.matrix(PROJECTION, self.projection, self.hidden)?;
        Ok(backend.matmul(&class, Op::None, &projection, Op::Transpose)?)
    }
}

/// Every token sees every other.
pub fn encoder_attention(hidden: usize, heads: usize) -> Attention {
    let scale = ((hidden / heads) as f32).sqrt().recip();
    Attention { heads, key_heads: heads, causal: false, window: None, scale }
}
