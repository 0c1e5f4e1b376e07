//! Encoders in the manner of BERT: learned positions, norms after the halves of a block.

use super::super::{
    After, Block, FeedForward, InputKind, Linear, Loader, Order, Part, Pooling, Qkv, Result, Samples,
    SelfAttention, Weights,
};
use super::text::{Packed, encoder_attention};
use super::{Architecture, Sizes, pool};
use crate::backend::layers::{Activation, Attention, Layers};

/// Sizes of an encoder, and what its tensors are called.
pub struct Encoder {
    pub prefix: &'static str,
    pub names: &'static Names,
    pub blocks: usize,
    pub hidden: usize,
    pub wide: usize,
    pub heads: usize,
    pub vocabulary: usize,
    /// Rows of the table of token types, where there is one.
    pub types: Option<usize>,
    /// A text is read from left to right: `is_decoder`.
    pub causal: bool,
    /// Rows of the position table, and the row of the first token.
    pub positions: usize,
    pub first_position: usize,
    pub activation: Activation,
    pub epsilon: f32,
}

/// Parts of a block's names, after `BLOCKS.index.`
pub struct Names {
    pub blocks: &'static str,
    pub qkv: [&'static str; 3],
    pub out: &'static str,
    pub attention_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub feed_forward_norm: &'static str,
}

impl Encoder {
    fn longest(&self) -> usize {
        self.positions.saturating_sub(self.first_position)
    }
}

impl<B: Layers> Architecture<B> for Encoder {
    fn sizes(&self) -> Sizes {
        let longest = Some(self.longest());
        let inputs = InputKind::Text { vocabulary: self.vocabulary, longest, types: self.types };
        Sizes { blocks: self.blocks, hidden: self.hidden, features: self.hidden, widest: self.wide, inputs }
    }

    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>> {
        let (load, d) = (Loader::new(backend, weights, self.prefix), self.hidden);
        let packed = Packed::new(samples, Some(self.longest()))?;
        let mut x = load.embedding("embeddings.word_embeddings.weight", d, &packed.ids)?;
        if self.types.is_some() {
            let types = load.embedding("embeddings.token_type_embeddings.weight", d, &packed.types())?;
            backend.add(&types, &mut x)?;
        }
        let positions = packed.positions(self.first_position);
        backend.add(&load.embedding("embeddings.position_embeddings.weight", d, &positions)?, &mut x)?;
        let hidden = load.layer_norm("embeddings.LayerNorm", d, self.epsilon)?.apply(backend, &x)?;
        packed.embedded(backend, hidden)
    }

    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>> {
        let (load, d, names) = (Loader::new(backend, weights, self.prefix), self.hidden, self.names);
        let at = format!("{}.{index}", names.blocks);
        let linear = |name: &str, d_in, d_out| -> Result<Linear<B>> {
            load.linear(&format!("{at}.{name}"), d_in, d_out)
        };
        let norm = |name: &str| load.layer_norm(&format!("{at}.{name}"), d, self.epsilon);
        let [q, k, v] = names.qkv;
        Ok(Block {
            order: Order::NormLast,
            attention: SelfAttention {
                qkv: Qkv::Separate([linear(q, d, d)?, linear(k, d, d)?, linear(v, d, d)?]),
                head_norms: None,
                rotary: None,
                out: linear(names.out, d, d)?,
                attention: Attention { causal: self.causal, ..encoder_attention(d, self.heads) },
            },
            attention_norm: norm(names.attention_norm)?,
            after_attention: After::Nothing,
            feed_forward: FeedForward::Plain {
                up: linear(names.up, d, self.wide)?,
                down: linear(names.down, self.wide, d)?,
                activation: self.activation,
            },
            feed_forward_norm: norm(names.feed_forward_norm)?,
            after_feed_forward: After::Nothing,
        })
    }

    /// The last hidden state, pooled; by the mean unless the task says otherwise.
    fn features(
        &self,
        backend: &B,
        _weights: &dyn Weights,
        part: &Part<B>,
        pooling: Option<Pooling>,
    ) -> Result<B::Tensor> {
        pool(backend, &part.hidden, part, pooling.unwrap_or(Pooling::Mean))
    }
}
