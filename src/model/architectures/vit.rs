//! ViT, as Hugging Face's `vit`: `google/vit-base-patch16-224` and its kin.

use super::super::{
    Block, Config, Error, FeedForward, InputKind, Linear, Loader, Order, Part, Pooling, Qkv, Result, Samples,
    SelfAttention, Weights, prefix_of,
};
use super::clip::encoder_attention;
use super::vision::{Grid, ImageEmbedding, embed};
use super::{Architecture, pool};
use crate::backend::layers::{Activation, Layers};

/// Sizes of a ViT.
pub struct Vit {
    prefix: &'static str,
    grid: Grid,
    blocks: usize,
    hidden: usize,
    wide: usize,
    heads: usize,
    activation: Activation,
    epsilon: f32,
}

impl Vit {
    pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Vit> {
        let prefix = prefix_of(weights, &["vit.", ""], "embeddings.cls_token")
            .ok_or_else(|| Error::MissingTensor("vit.embeddings.cls_token".into()))?;
        let hidden = config.size("hidden_size")?;
        Ok(Vit {
            prefix,
            grid: Grid::new(config)?,
            blocks: config.size("num_hidden_layers")?,
            hidden,
            wide: config.size("intermediate_size")?,
            heads: config.heads(hidden)?.0,
            activation: config.activation("hidden_act", "gelu")?,
            epsilon: config.number_or("layer_norm_eps", 1e-12)? as f32,
        })
    }
}

impl<B: Layers> Architecture<B> for Vit {
    fn blocks(&self) -> usize {
        self.blocks
    }

    fn hidden_size(&self) -> usize {
        self.hidden
    }

    fn widest(&self) -> usize {
        self.wide.max(3 * self.hidden)
    }

    fn inputs(&self) -> InputKind {
        InputKind::Images { grid: self.grid, tokens: self.grid.patches() + 1 }
    }

    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>> {
        let (load, d) = (Loader::new(backend, weights, self.prefix), self.hidden);
        let patches = "embeddings.patch_embeddings.projection";
        let embedding = ImageEmbedding {
            patches: load.patch_weight(
                &format!("{patches}.weight"),
                d,
                self.grid.channels,
                self.grid.patch,
            )?,
            bias: Some(load.vector(&format!("{patches}.bias"), d)?),
            class: load.with_leading_ones("embeddings.cls_token", 1, 1, d)?,
            positions: load.with_leading_ones(
                "embeddings.position_embeddings",
                1,
                self.grid.patches() + 1,
                d,
            )?,
        };
        embed(backend, self.grid, &embedding, samples)
    }

    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>> {
        let (load, d) = (Loader::new(backend, weights, self.prefix), self.hidden);
        let at = format!("encoder.layer.{index}");
        let linear = |name: &str, d_in, d_out| -> Result<Linear<B>> {
            load.linear(&format!("{at}.{name}"), d_in, d_out)
        };
        Ok(Block {
            order: Order::NormFirst,
            attention: SelfAttention {
                qkv: Qkv::Separate([
                    linear("attention.attention.query", d, d)?,
                    linear("attention.attention.key", d, d)?,
                    linear("attention.attention.value", d, d)?,
                ]),
                out: linear("attention.output.dense", d, d)?,
                attention: encoder_attention(d, self.heads),
            },
            attention_norm: load.layer_norm(&format!("{at}.layernorm_before"), d, self.epsilon)?,
            feed_forward: FeedForward::Plain {
                up: linear("intermediate.dense", d, self.wide)?,
                down: linear("output.dense", self.wide, d)?,
                activation: self.activation,
            },
            feed_forward_norm: load.layer_norm(&format!("{at}.layernorm_after"), d, self.epsilon)?,
        })
    }

    /// After the last norm, the class token unless the task pools otherwise.
    fn features(
        &self,
        backend: &B,
        weights: &dyn Weights,
        part: &Part<B>,
        pooling: Option<Pooling>,
    ) -> Result<B::Tensor> {
        let load = Loader::new(backend, weights, self.prefix);
        let normed = load.layer_norm("layernorm", self.hidden, self.epsilon)?.apply(backend, &part.hidden)?;
        pool(backend, &normed, part, pooling.unwrap_or(Pooling::First))
    }
}
