//! BERT and its kin: MiniLM, RoBERTa, XLM-RoBERTa.

use super::super::{
    Block, Config, Error, FeedForward, InputKind, Linear, Loader, Order, Part, Pooling, Qkv, Result, Samples,
    SelfAttention, Tokens, Weights, prefix_of,
};
use super::clip::encoder_attention;
use super::{Architecture, counted, pool};
use crate::backend::layers::{Activation, Attention, Layers};
use std::rc::Rc;

/// Sizes of an encoder.
pub struct Bert {
    prefix: &'static str,
    blocks: usize,
    hidden: usize,
    wide: usize,
    heads: usize,
    vocabulary: usize,
    /// Rows of the table of token types.
    types: usize,
    /// A text is read from left to right: `is_decoder`.
    causal: bool,
    /// Rows of the position table, and the row of the first token.
    positions: usize,
    first_position: usize,
    activation: Activation,
    epsilon: f32,
}

impl Bert {
    pub fn new(config: Config<'_>, weights: &dyn Weights) -> Result<Bert> {
        if let Some(other) = config.text("position_embedding_type").filter(|t| *t != "absolute") {
            let found = format!("`position_embedding_type: {other}` is not absolute");
            return Err(Error::Unsupported { found });
        }
        let prefix = prefix_of(weights, &["", "bert.", "roberta."], "embeddings.word_embeddings.weight")
            .ok_or_else(|| Error::MissingTensor("embeddings.word_embeddings.weight".into()))?;
        // RoBERTa counts positions from the one after padding's
        let first_position = match config.text("model_type") {
            Some("bert") => 0,
            _ => config.index_or("pad_token_id", 1)? + 1,
        };
        let hidden = config.size("hidden_size")?;
        Ok(Bert {
            prefix,
            blocks: config.size("num_hidden_layers")?,
            hidden,
            wide: config.size("intermediate_size")?,
            heads: config.heads(hidden)?.0,
            vocabulary: config.size("vocab_size")?,
            types: config.size_or("type_vocab_size", 2)?,
            causal: config.flag("is_decoder"),
            positions: config.size("max_position_embeddings")?,
            first_position,
            activation: config.activation("hidden_act", "gelu")?,
            epsilon: config.number_or("layer_norm_eps", 1e-12)? as f32,
        })
    }

    fn longest(&self) -> usize {
        self.positions.saturating_sub(self.first_position)
    }

    /// Token types, all 0 where a text gives none.
    fn types(&self, texts: &[Tokens]) -> Vec<u32> {
        texts.iter().flat_map(|t| (0..t.ids.len()).map(|i| t.types.get(i).copied().unwrap_or(0))).collect()
    }
}

impl<B: Layers> Architecture<B> for Bert {
    fn blocks(&self) -> usize {
        self.blocks
    }

    fn hidden_size(&self) -> usize {
        self.hidden
    }

    fn widest(&self) -> usize {
        self.wide
    }

    fn inputs(&self) -> InputKind {
        InputKind::Text {
            vocabulary: self.vocabulary,
            longest: Some(self.longest()),
            types: Some(self.types),
        }
    }

    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>> {
        let (load, d) = (Loader::new(backend, weights, self.prefix), self.hidden);
        let texts = samples.texts()?;
        let lengths: Vec<usize> = texts.iter().map(|t| t.ids.len()).collect();
        super::check_lengths(&lengths, self.longest(), &counted)?;
        let ids: Vec<u32> = texts.iter().flat_map(|t| t.ids.iter().copied()).collect();
        let positions: Vec<u32> =
            lengths.iter().flat_map(|&n| (0..n).map(|i| (self.first_position + i) as u32)).collect();

        let mut x = load.embedding("embeddings.word_embeddings.weight", d, &ids)?;
        backend.add(
            &load.embedding("embeddings.token_type_embeddings.weight", d, &self.types(texts))?,
            &mut x,
        )?;
        backend.add(&load.embedding("embeddings.position_embeddings.weight", d, &positions)?, &mut x)?;
        let hidden = load.layer_norm("embeddings.LayerNorm", d, self.epsilon)?.apply(backend, &x)?;
        Ok(Part { segments: Rc::new(backend.segments(&lengths)?), lengths, rotary: None, hidden })
    }

    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>> {
        let (load, d) = (Loader::new(backend, weights, self.prefix), self.hidden);
        let at = format!("encoder.layer.{index}");
        let linear = |name: &str, d_in, d_out| -> Result<Linear<B>> {
            load.linear(&format!("{at}.{name}"), d_in, d_out)
        };
        Ok(Block {
            order: Order::NormLast,
            attention: SelfAttention {
                qkv: Qkv::Separate([
                    linear("attention.self.query", d, d)?,
                    linear("attention.self.key", d, d)?,
                    linear("attention.self.value", d, d)?,
                ]),
                out: linear("attention.output.dense", d, d)?,
                attention: Attention { causal: self.causal, ..encoder_attention(d, self.heads) },
            },
            attention_norm: load.layer_norm(&format!("{at}.attention.output.LayerNorm"), d, self.epsilon)?,
            feed_forward: FeedForward::Plain {
                up: linear("intermediate.dense", d, self.wide)?,
                down: linear("output.dense", self.wide, d)?,
                activation: self.activation,
            },
            feed_forward_norm: load.layer_norm(&format!("{at}.output.LayerNorm"), d, self.epsilon)?,
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
