//! GPT-NeoX (Pythia): both halves of a block read the same, a part of every head turns, queries, keys and values of a head
//! stand together.

use super::super::{
    After, Block, Config, Error, FeedForward, InputKind, Loader, Order, Part, Pooling, Qkv, Result, Samples,
    SelfAttention, Weights, prefix_of,
};
use super::rope::Rope;
use super::text::{Packed, encoder_attention};
use super::{Architecture, Sizes, pool_normed};
use crate::backend::layers::{Activation, Attention, Layers};

/// Sizes of a decoder.
pub struct GptNeoX {
    prefix: &'static str,
    blocks: usize,
    hidden: usize,
    wide: usize,
    heads: usize,
    vocabulary: usize,
    longest: Option<usize>,
    parallel: bool,
    rope: Rope,
    activation: Activation,
    epsilon: f32,
}

impl GptNeoX {
    pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<GptNeoX> {
        let prefix = prefix_of(weights, &["gpt_neox.", ""], "embed_in.weight")
            .ok_or_else(|| Error::MissingTensor("gpt_neox.embed_in.weight".into()))?;
        let hidden = config.size("hidden_size")?;
        let (heads, head_dim) = config.heads(hidden)?;
        let in_rope =
            config.object("rope_parameters").is_some_and(|r| r.get("partial_rotary_factor").is_some());
        if config.get("rotary_pct").is_none() && config.get("partial_rotary_factor").is_none() && !in_rope {
            return Err(Error::Config("`rotary_pct` is missing".into()));
        }
        Ok(GptNeoX {
            prefix,
            blocks: config.blocks("num_hidden_layers")?,
            hidden,
            wide: config.size("intermediate_size")?,
            heads,
            vocabulary: config.size("vocab_size")?,
            longest: config.optional_size("max_position_embeddings")?,
            parallel: config.get("use_parallel_residual").is_none_or(|p| p.as_bool() != Some(false)),
            rope: Rope::of(config, head_dim)?,
            activation: config.activation("hidden_act", "gelu")?,
            epsilon: config.number_or("layer_norm_eps", 1e-5)? as f32,
        })
    }
}

impl<B: Layers> Architecture<B> for GptNeoX {
    fn sizes(&self) -> Sizes {
        let (hidden, longest) = (self.hidden, self.longest);
        let inputs = InputKind::Text { vocabulary: self.vocabulary, longest, types: None };
        Sizes { blocks: self.blocks, hidden, features: hidden, widest: self.wide.max(3 * hidden), inputs }
    }

    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>> {
        let load = Loader::new(backend, weights, self.prefix);
        let packed = Packed::new(samples, self.longest)?;
        let rotary = vec![packed.rotary(backend, &self.rope)?];
        let hidden = load.embedding("embed_in.weight", self.hidden, &packed.ids)?;
        Ok(Part { rotary, ..packed.embedded(backend, hidden)? })
    }

    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>> {
        let (load, d, wide) = (Loader::new(backend, weights, self.prefix), self.hidden, self.wide);
        let at = format!("layers.{index}");
        let linear = |name: &str, d_in, d_out| load.linear(&format!("{at}.{name}"), d_in, d_out);
        let norm = |name: &str| load.layer_norm(&format!("{at}.{name}"), d, self.epsilon);
        Ok(Block {
            order: if self.parallel { Order::Parallel } else { Order::NormFirst },
            attention: SelfAttention {
                qkv: Qkv::ByHead(linear("attention.query_key_value", d, 3 * d)?, self.heads),
                head_norms: None,
                rotary: Some(0),
                out: linear("attention.dense", d, d)?,
                attention: Attention { causal: true, ..encoder_attention(d, self.heads) },
            },
            attention_norm: norm("input_layernorm")?,
            after_attention: After::Nothing,
            feed_forward: FeedForward::Plain {
                up: linear("mlp.dense_h_to_4h", d, wide)?,
                down: linear("mlp.dense_4h_to_h", wide, d)?,
                activation: self.activation,
            },
            feed_forward_norm: norm("post_attention_layernorm")?,
            after_feed_forward: After::Nothing,
        })
    }

    /// After the last norm, the last token unless the task pools otherwise.
    fn features(
        &self,
        backend: &B,
        weights: &dyn Weights,
        part: &Part<B>,
        pooling: Option<Pooling>,
    ) -> Result<B::Tensor> {
        let load = Loader::new(backend, weights, self.prefix);
        let norm = load.layer_norm("final_layer_norm", self.hidden, self.epsilon)?;
        pool_normed(backend, &norm, part, pooling.unwrap_or(Pooling::Last))
    }
}
