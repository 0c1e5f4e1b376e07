//! GPT-2: learned positions, norms before the halves, linear weights stored as `d_in x d_out`.

use super::super::{
    After, Block, Config, Error, FeedForward, InputKind, Loader, Order, Part, Pooling, Qkv, Result, Samples,
    SelfAttention, Weights, prefix_of,
};
use super::text::{Packed, encoder_attention};
use super::{Architecture, Sizes, pool_normed};
use crate::backend::layers::{Activation, Attention, Layers};

/// Sizes of a decoder.
pub struct Gpt2 {
    prefix: &'static str,
    blocks: usize,
    hidden: usize,
    wide: usize,
    heads: usize,
    vocabulary: usize,
    positions: usize,
    activation: Activation,
    epsilon: f32,
}

impl Gpt2 {
    pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Gpt2> {
        let prefix = prefix_of(weights, &["transformer.", ""], "wte.weight")
            .ok_or_else(|| Error::MissingTensor("transformer.wte.weight".into()))?;
        for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
            if config.flag(key) {
                return Err(Error::Unsupported {
                    found: format!("a GPT-2 with `{key}: true` cannot be run"),
                });
            }
        }
        let (hidden, heads) = (config.size("n_embd")?, config.size("n_head")?);
        if !hidden.is_multiple_of(heads) {
            return Err(Error::Config(format!("n_embd {hidden} is no multiple of {heads} heads (`n_head`)")));
        }
        Ok(Gpt2 {
            prefix,
            blocks: config.blocks("n_layer")?,
            hidden,
            wide: config.size_or("n_inner", 4 * hidden)?,
            heads,
            vocabulary: config.size("vocab_size")?,
            positions: config.size("n_positions")?,
            activation: config.activation("activation_function", "gelu_new")?,
            epsilon: config.number_or("layer_norm_epsilon", 1e-5)? as f32,
        })
    }
}

impl<B: Layers> Architecture<B> for Gpt2 {
    fn sizes(&self) -> Sizes {
        let (hidden, longest) = (self.hidden, Some(self.positions));
        let inputs = InputKind::Text { vocabulary: self.vocabulary, longest, types: None };
        Sizes { blocks: self.blocks, hidden, features: hidden, widest: self.wide.max(3 * hidden), inputs }
    }

    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>> {
        let load = Loader::new(backend, weights, self.prefix);
        let packed = Packed::new(samples, Some(self.positions))?;
        let mut x = load.embedding("wte.weight", self.hidden, &packed.ids)?;
        backend.add(&load.embedding("wpe.weight", self.hidden, &packed.positions(0))?, &mut x)?;
        packed.embedded(backend, x)
    }

    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>> {
        let (load, d, wide) = (Loader::new(backend, weights, self.prefix), self.hidden, self.wide);
        let at = format!("h.{index}");
        let linear = |name: &str, d_in, d_out| load.linear_across(&format!("{at}.{name}"), d_in, d_out);
        let norm = |name: &str| load.layer_norm(&format!("{at}.{name}"), d, self.epsilon);
        Ok(Block {
            order: Order::NormFirst,
            attention: SelfAttention {
                qkv: Qkv::Fused(linear("attn.c_attn", d, 3 * d)?, [d; 3]),
                head_norms: None,
                rotary: None,
                out: linear("attn.c_proj", d, d)?,
                attention: Attention { causal: true, ..encoder_attention(d, self.heads) },
            },
            attention_norm: norm("ln_1")?,
            after_attention: After::Nothing,
            feed_forward: FeedForward::Plain {
                up: linear("mlp.c_fc", d, wide)?,
                down: linear("mlp.c_proj", wide, d)?,
                activation: self.activation,
            },
            feed_forward_norm: norm("ln_2")?,
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
        let norm = load.layer_norm("ln_f", self.hidden, self.epsilon)?;
        pool_normed(backend, &norm, part, pooling.unwrap_or(Pooling::Last))
    }
}
