//! ModernBERT: an encoder with rotary positions and norms before the halves, of whose blocks most see a neighbourhood only.

use super::super::{
    After, Block, Config, Error, FeedForward, Gated, InputKind, Loader, Norm, Order, Part, Pooling, Qkv,
    Result, Samples, SelfAttention, WayIn, Weights, prefix_of,
};
use super::rope::{self, Rope};
use super::text::{Packed, encoder_attention};
use super::{Architecture, Sizes, pool_normed};
use crate::backend::layers::{Activation, Attention, Layers};

/// Sizes of an encoder.
pub struct ModernBert {
    prefix: &'static str,
    hidden: usize,
    wide: usize,
    heads: usize,
    vocabulary: usize,
    longest: usize,
    /// For each block whether it sees all tokens.
    global: Vec<bool>,
    /// Tokens in one direction that the others see, the own one included.
    window: usize,
    /// Of global blocks, then of local ones.
    ropes: [Rope; 2],
    activation: Activation,
    epsilon: f32,
}

impl ModernBert {
    pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<ModernBert> {
        let prefix = prefix_of(weights, &["", "model."], "embeddings.tok_embeddings.weight")
            .ok_or_else(|| Error::MissingTensor("embeddings.tok_embeddings.weight".into()))?;
        let hidden = config.size("hidden_size")?;
        let (heads, head_dim) = config.heads(hidden)?;
        let blocks = config.blocks("num_hidden_layers")?;
        let every = config.size_or("global_attn_every_n_layers", 3)?;
        let theta = |key, default| config.number_or(key, default);
        Ok(ModernBert {
            prefix,
            hidden,
            wide: config.size("intermediate_size")?,
            heads,
            vocabulary: config.size("vocab_size")?,
            longest: config.size_or("max_position_embeddings", 8192)?,
            global: rope::full_attention(config, blocks, |i| i % every == 0)?,
            window: config.size_or("local_attention", 128)? / 2 + 1,
            ropes: [
                Rope::of_kind(config, "full_attention", head_dim, theta("global_rope_theta", 160_000.0)?)?,
                Rope::of_kind(config, "sliding_attention", head_dim, theta("local_rope_theta", 10_000.0)?)?,
            ],
            activation: config.activation("hidden_activation", "gelu")?,
            epsilon: config.number_or("norm_eps", 1e-5)? as f32,
        })
    }
}

impl<B: Layers> Architecture<B> for ModernBert {
    fn sizes(&self) -> Sizes {
        let (hidden, longest) = (self.hidden, Some(self.longest));
        let inputs = InputKind::Text { vocabulary: self.vocabulary, longest, types: None };
        let widest = (2 * self.wide).max(3 * hidden);
        Sizes { blocks: self.global.len(), hidden, features: hidden, widest, inputs }
    }

    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>> {
        let (load, d) = (Loader::new(backend, weights, self.prefix), self.hidden);
        let packed = Packed::new(samples, Some(self.longest))?;
        let [global, local] = &self.ropes;
        let rotary = vec![packed.rotary(backend, global)?, packed.rotary(backend, local)?];
        let x = load.embedding("embeddings.tok_embeddings.weight", d, &packed.ids)?;
        let norm = load.layer_norm_without_bias("embeddings.norm", d, self.epsilon)?;
        Ok(Part { rotary, ..packed.embedded(backend, norm.apply(backend, &x)?)? })
    }

    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>> {
        let (load, d, wide) = (Loader::new(backend, weights, self.prefix), self.hidden, self.wide);
        let at = format!("layers.{index}");
        let linear = |name: &str, d_in, d_out| load.linear(&format!("{at}.{name}"), d_in, d_out);
        let norm = |name: &str| load.layer_norm_without_bias(&format!("{at}.{name}"), d, self.epsilon);
        let global = self.global[index];
        let window = (!global).then_some(self.window);
        Ok(Block {
            order: Order::NormFirst,
            attention: SelfAttention {
                qkv: Qkv::Fused(linear("attn.Wqkv", d, 3 * d)?, [d; 3]),
                head_norms: None,
                rotary: Some(usize::from(!global)),
                out: linear("attn.Wo", d, d)?,
                attention: Attention { window, ..encoder_attention(d, self.heads) },
            },
            // the embedding's norm stands right before the first block
            attention_norm: if index == 0 { Norm::Identity } else { norm("attn_norm")? },
            after_attention: After::Nothing,
            feed_forward: FeedForward::Gated(Gated {
                way_in: WayIn::Fused(linear("mlp.Wi", d, 2 * wide)?),
                down: linear("mlp.Wo", wide, d)?,
                activation: self.activation,
            }),
            feed_forward_norm: norm("mlp_norm")?,
            after_feed_forward: After::Nothing,
        })
    }

    /// After the last norm, the mean of the tokens unless the task pools otherwise.
    fn features(
        &self,
        backend: &B,
        weights: &dyn Weights,
        part: &Part<B>,
        pooling: Option<Pooling>,
    ) -> Result<B::Tensor> {
        let load = Loader::new(backend, weights, self.prefix);
        let norm = load.layer_norm_without_bias("final_norm", self.hidden, self.epsilon)?;
        pool_normed(backend, &norm, part, pooling.unwrap_or(Pooling::Mean))
    }
}
