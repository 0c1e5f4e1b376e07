//! Decoders in the manner of Llama: Llama, Mistral, Qwen2.

use super::super::{
    Block, Config, Error, FeedForward, InputKind, Linear, Loader, Order, Part, Pooling, Qkv, Result, Samples,
    SelfAttention, Weights, prefix_of,
};
use super::{Architecture, counted, pool, rope};
use crate::backend::Shape;
use crate::backend::layers::{Activation, Attention, Layers};
use std::rc::Rc;

/// Sizes of a decoder.
pub struct Decoder {
    prefix: &'static str,
    blocks: usize,
    hidden: usize,
    wide: usize,
    heads: usize,
    key_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    frequencies: Vec<f64>,
    vocabulary: usize,
    longest: Option<usize>,
    activation: Activation,
    epsilon: f32,
}

impl Decoder {
    pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Decoder> {
        let prefix = prefix_of(weights, &["model.", ""], "embed_tokens.weight")
            .ok_or_else(|| Error::MissingTensor("model.embed_tokens.weight".into()))?;
        let hidden = config.size("hidden_size")?;
        let heads = config.size("num_attention_heads")?;
        let head_dim = match config.optional_size("head_dim")? {
            Some(given) => given,
            None => config.heads(hidden)?.1,
        };
        let key_heads = config.size_or("num_key_value_heads", heads)?;
        if !heads.is_multiple_of(key_heads) || !head_dim.is_multiple_of(2) {
            return Err(Error::Config(format!(
                "{heads} heads of {head_dim} columns cannot share {key_heads} key heads"
            )));
        }
        Ok(Decoder {
            prefix,
            blocks: config.size("num_hidden_layers")?,
            hidden,
            wide: config.size("intermediate_size")?,
            heads,
            key_heads,
            head_dim,
            window: window(config)?,
            frequencies: rope::frequencies(config, head_dim)?,
            vocabulary: config.size("vocab_size")?,
            longest: config.optional_size("max_position_embeddings")?,
            activation: config.activation("hidden_act", "silu")?,
            epsilon: config.number_or("rms_norm_eps", 1e-6)? as f32,
        })
    }
}

/// The sliding window of attention, where all blocks have one.
fn window(config: Config<'_>) -> Result<Option<usize>> {
    let used = match config.text("model_type") {
        Some("mistral") => true,
        Some("qwen2") => config.flag("use_sliding_window"),
        _ => false,
    };
    let window = if used { config.optional_size("sliding_window")? } else { None };
    if window.is_some() && config.text("model_type") == Some("qwen2") {
        return Err(Error::Unsupported {
            found: "a Qwen2 with `use_sliding_window: true` cannot be run".into(),
        });
    }
    Ok(window)
}

impl<B: Layers> Architecture<B> for Decoder {
    fn blocks(&self) -> usize {
        self.blocks
    }

    fn hidden_size(&self) -> usize {
        self.hidden
    }

    fn widest(&self) -> usize {
        self.wide.max(self.heads * self.head_dim)
    }

    fn inputs(&self) -> InputKind {
        InputKind::Text { vocabulary: self.vocabulary, longest: self.longest, types: None }
    }

    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>> {
        let load = Loader::new(backend, weights, self.prefix);
        let texts = samples.texts()?;
        let lengths: Vec<usize> = texts.iter().map(|t| t.ids.len()).collect();
        super::check_lengths(&lengths, self.longest.unwrap_or(usize::MAX), &counted)?;
        let ids: Vec<u32> = texts.iter().flat_map(|t| t.ids.iter().copied()).collect();
        let [cos, sin] = rope::tables(&self.frequencies, &lengths);
        let shape = Shape::matrix(ids.len(), self.frequencies.len());
        Ok(Part {
            segments: Rc::new(backend.segments(&lengths)?),
            rotary: Some(Rc::new([backend.upload(shape, &cos)?, backend.upload(shape, &sin)?])),
            hidden: load.embedding("embed_tokens.weight", self.hidden, &ids)?,
            lengths,
        })
    }

    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>> {
        let (load, d) = (Loader::new(backend, weights, self.prefix), self.hidden);
        let at = format!("layers.{index}");
        let linear = |name: &str, d_in, d_out| -> Result<Linear<B>> {
            load.linear(&format!("{at}.{name}"), d_in, d_out)
        };
        let (queries, keys) = (self.heads * self.head_dim, self.key_heads * self.head_dim);
        Ok(Block {
            order: Order::NormFirst,
            attention: SelfAttention {
                qkv: Qkv::Separate([
                    linear("self_attn.q_proj", d, queries)?,
                    linear("self_attn.k_proj", d, keys)?,
                    linear("self_attn.v_proj", d, keys)?,
                ]),
                out: linear("self_attn.o_proj", queries, d)?,
                attention: Attention {
                    heads: self.heads,
                    key_heads: self.key_heads,
                    causal: true,
                    window: self.window,
                    scale: (self.head_dim as f32).sqrt().recip(),
                },
            },
            attention_norm: load.rms_norm(&format!("{at}.input_layernorm"), d, self.epsilon)?,
            feed_forward: FeedForward::Gated {
                gate: linear("mlp.gate_proj", d, self.wide)?,
                up: linear("mlp.up_proj", d, self.wide)?,
                down: linear("mlp.down_proj", self.wide, d)?,
                activation: self.activation,
            },
            feed_forward_norm: load.rms_norm(&format!("{at}.post_attention_layernorm"), d, self.epsilon)?,
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
        let normed = load.rms_norm("norm", self.hidden, self.epsilon)?.apply(backend, &part.hidden)?;
        pool(backend, &normed, part, pooling.unwrap_or(Pooling::Last))
    }
}
