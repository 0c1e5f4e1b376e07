//! Decoders in the manner of Llama: RMS norms, rotary positions, grouped queries, gated feed-forward layers. A family is a
//! [`Decoder`] with a few fields of its own.

use super::super::{
    After, Block, Config, Error, FeedForward, Gated, InputKind, Linear, Loader, Mixture, Norm, Order, Part,
    Pooling, Qkv, Result, Samples, SelfAttention, WayIn, Weights, prefix_of,
};
use super::rope::{self, Rope};
use super::text::Packed;
use super::{Architecture, Sizes, pool_normed};
use crate::backend::layers::{Activation, Attention, Layers};

/// Sizes and kinds of parts of a decoder.
pub struct Decoder {
    pub prefix: &'static str,
    pub hidden: usize,
    pub wide: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    pub vocabulary: usize,
    pub longest: Option<usize>,
    pub activation: Activation,
    pub epsilon: f32,
    /// Tables of rotary positions.
    pub ropes: Vec<Rope>,
    /// What kind every block is.
    pub blocks: Vec<Kind>,
    /// Factor of the scores.
    pub scale: f32,
    /// Of the scores ([`Attention::cap`]).
    pub cap: Option<f32>,
    /// Factor of the embedding.
    pub embedding_scale: f32,
    /// Norms have `1 + w` for a weight.
    pub norms_from_one: bool,
    /// Every head of queries and keys is normed.
    pub head_norms: bool,
    /// The halves of a block are normed before and after.
    pub sandwiched: bool,
    /// Queries, keys and values are one layer, and so are gate and what is gated.
    pub fused: bool,
    pub mixture: Option<MixtureKind>,
}

/// Where transformers 5 has the matrices of all experts together (`save_original_format=False`), and what they are called: gate and
/// what is gated, and back.
const TOGETHER: &str = "mlp.experts";
const WAYS: [&str; 2] = ["gate_up_proj", "down_proj"];

/// A kind of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The most tokens seen.
    pub window: Option<usize>,
    /// Which rope turns queries and keys.
    pub rope: usize,
    /// Whether its second half is a mixture.
    pub mixture: bool,
}

/// Mixtures of experts, and what their tensors are called.
pub struct MixtureKind {
    pub experts: usize,
    pub chosen: usize,
    pub wide: usize,
    pub normalized: bool,
    pub router: &'static str,
    /// What stands before an expert's number.
    pub expert: &'static str,
    /// Gate, what is gated, and back.
    pub layers: [&'static str; 3],
}

impl Decoder {
    /// As Llama has it.
    pub fn plain(config: Config<'_>, weights: &dyn Weights) -> Result<Decoder> {
        Decoder::found_at(config, weights, &["model.", ""])
    }

    /// The same under one of some prefixes.
    pub fn found_at(config: Config<'_>, weights: &dyn Weights, prefixes: &[&'static str]) -> Result<Decoder> {
        let prefix = prefix_of(weights, prefixes, "embed_tokens.weight")
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
        let kind = Kind { window: None, rope: 0, mixture: false };
        Ok(Decoder {
            prefix,
            hidden,
            wide: config.size("intermediate_size")?,
            heads,
            key_heads,
            head_dim,
            vocabulary: config.size("vocab_size")?,
            longest: rope::longest(config)?,
            activation: config.activation("hidden_act", "silu")?,
            epsilon: config.number_or("rms_norm_eps", 1e-6)? as f32,
            ropes: vec![Rope::of(config, head_dim)?],
            blocks: vec![kind; config.blocks("num_hidden_layers")?],
            scale: (head_dim as f32).sqrt().recip(),
            cap: None,
            embedding_scale: 1.0,
            norms_from_one: false,
            head_norms: false,
            sandwiched: false,
            fused: false,
            mixture: None,
        })
    }

    /// With a sliding window in the blocks that do not see all tokens.
    pub fn windowed(mut self, config: Config<'_>, full: impl Fn(usize) -> bool) -> Result<Decoder> {
        let window = config.optional_size("sliding_window")?;
        let full = rope::full_attention(config, self.blocks.len(), full)?;
        for (block, full) in self.blocks.iter_mut().zip(full) {
            block.window = window.filter(|_| !full);
        }
        Ok(self)
    }
}

/// A decoder's tensors of one block on their way to the device.
struct Of<'a, B: Layers> {
    decoder: &'a Decoder,
    load: Loader<'a, B>,
    at: String,
}

impl<B: Layers> Of<'_, B> {
    fn linear(&self, name: &str, d_in: usize, d_out: usize) -> Result<Linear<B>> {
        self.load.linear(&format!("{}.{name}", self.at), d_in, d_out)
    }

    fn norm(&self, name: &str, d: usize) -> Result<Norm<B>> {
        self.decoder.norm(&self.load, &format!("{}.{name}", self.at), d)
    }

    fn attention(&self, kind: Kind) -> Result<SelfAttention<B>> {
        let of = self.decoder;
        let (d, queries, keys) = (of.hidden, of.heads * of.head_dim, of.key_heads * of.head_dim);
        let qkv = if of.fused {
            let layer = self.linear("self_attn.qkv_proj", d, queries + 2 * keys)?;
            Qkv::Fused(layer, [queries, keys, keys])
        } else {
            Qkv::Separate([
                self.linear("self_attn.q_proj", d, queries)?,
                self.linear("self_attn.k_proj", d, keys)?,
                self.linear("self_attn.v_proj", d, keys)?,
            ])
        };
        let head_norm = |name| self.norm(name, of.head_dim);
        let head_norms = match of.head_norms {
            true => Some([head_norm("self_attn.q_norm")?, head_norm("self_attn.k_norm")?]),
            false => None,
        };
        Ok(SelfAttention {
            qkv,
            head_norms,
            rotary: Some(kind.rope),
            out: self.linear("self_attn.o_proj", queries, d)?,
            attention: Attention {
                heads: of.heads,
                key_heads: of.key_heads,
                causal: true,
                window: kind.window,
                scale: of.scale,
                cap: of.cap,
            },
        })
    }

    fn feed_forward(&self, kind: Kind) -> Result<FeedForward<B>> {
        let Decoder { hidden: d, wide, activation, .. } = *self.decoder;
        if let Some(mixture) = self.decoder.mixture.as_ref().filter(|_| kind.mixture) {
            return Ok(FeedForward::Mixture(self.mixture(mixture)?));
        }
        let down = self.linear("mlp.down_proj", wide, d)?;
        if self.decoder.fused {
            let way_in = WayIn::Fused(self.linear("mlp.gate_up_proj", d, 2 * wide)?);
            return Ok(FeedForward::Gated(Gated { way_in, down, activation }));
        }
        let (gate, up) = (self.linear("mlp.gate_proj", d, wide)?, self.linear("mlp.up_proj", d, wide)?);
        Ok(FeedForward::Gated(Gated { way_in: WayIn::Separate { gate, up }, down, activation }))
    }

    fn mixture(&self, kind: &MixtureKind) -> Result<Mixture<B>> {
        let together = self.load.has_of_all(&format!("{}.{TOGETHER}.{}", self.at, WAYS[0]));
        let (expert, router) = match together {
            true => (Self::expert_of_all as fn(&Self, &MixtureKind, usize) -> _, "mlp.gate"),
            false => (Self::expert_apart as fn(&Self, &MixtureKind, usize) -> _, kind.router),
        };
        Ok(Mixture {
            router: self.linear(router, self.decoder.hidden, kind.experts)?,
            chosen: kind.chosen,
            normalized: kind.normalized,
            experts: (0..kind.experts).map(|e| expert(self, kind, e)).collect::<Result<_>>()?,
        })
    }

    /// An expert with tensors of its own.
    fn expert_apart(&self, kind: &MixtureKind, index: usize) -> Result<Gated<B>> {
        let layer =
            |name: &str, d_in, d_out| self.linear(&format!("{}.{index}.{name}", kind.expert), d_in, d_out);
        let (d, wide, [gate, up, down]) = (self.decoder.hidden, kind.wide, kind.layers);
        let way_in = WayIn::Separate { gate: layer(gate, d, wide)?, up: layer(up, d, wide)? };
        Ok(Gated { way_in, down: layer(down, wide, d)?, activation: self.decoder.activation })
    }

    /// An expert whose matrices are parts of tensors of all experts.
    fn expert_of_all(&self, kind: &MixtureKind, index: usize) -> Result<Gated<B>> {
        let layer = |name: &str, d_in, d_out| {
            self.load.linear_of_all(&format!("{}.{TOGETHER}.{name}", self.at), index, d_in, d_out)
        };
        let (d, wide, [way_in, down]) = (self.decoder.hidden, kind.wide, WAYS);
        let way_in = WayIn::Fused(layer(way_in, d, 2 * wide)?);
        Ok(Gated { way_in, down: layer(down, wide, d)?, activation: self.decoder.activation })
    }
}

impl Decoder {
    fn norm<B: Layers>(&self, load: &Loader<'_, B>, name: &str, d: usize) -> Result<Norm<B>> {
        match self.norms_from_one {
            true => load.rms_norm_from_one(name, d, self.epsilon),
            false => load.rms_norm(name, d, self.epsilon),
        }
    }
}

impl<B: Layers> Architecture<B> for Decoder {
    fn sizes(&self) -> Sizes {
        let (hidden, longest) = (self.hidden, self.longest);
        let inputs = InputKind::Text { vocabulary: self.vocabulary, longest, types: None };
        let (queries, keys) = (self.heads * self.head_dim, self.key_heads * self.head_dim);
        let widest = match self.fused {
            true => (2 * self.wide).max(queries + 2 * keys),
            false => self.wide.max(queries),
        };
        let chosen = self.mixture.as_ref().map_or(0, |m| m.chosen * hidden.max(m.wide));
        Sizes { blocks: self.blocks.len(), hidden, features: hidden, widest: widest.max(chosen), inputs }
    }

    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>> {
        let load = Loader::new(backend, weights, self.prefix);
        let packed = Packed::new(samples, self.longest)?;
        let ropes = self.ropes.iter();
        let rotary = ropes.map(|rope| packed.rotary(backend, rope)).collect::<Result<_>>()?;
        let mut hidden = load.embedding("embed_tokens.weight", self.hidden, &packed.ids)?;
        if self.embedding_scale != 1.0 {
            let plain = backend.duplicate(&hidden)?;
            backend.axpby(self.embedding_scale, &plain, 0.0, &mut hidden)?;
        }
        Ok(Part { rotary, ..packed.embedded(backend, hidden)? })
    }

    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>> {
        let load = Loader::new(backend, weights, self.prefix);
        let (of, d, kind) =
            (Of { decoder: self, load, at: format!("layers.{index}") }, self.hidden, self.blocks[index]);
        let norm = |name| of.norm(name, d);
        // of four norms Gemma's second one stands after the attention
        let [second, third] = match self.sandwiched {
            true => ["pre_feedforward_layernorm", "post_feedforward_layernorm"],
            false => ["post_attention_layernorm"; 2],
        };
        let after = |name| -> Result<After<B>> {
            Ok(if self.sandwiched { After::Norm(norm(name)?) } else { After::Nothing })
        };
        Ok(Block {
            order: Order::NormFirst,
            attention: of.attention(kind)?,
            attention_norm: norm("input_layernorm")?,
            after_attention: after("post_attention_layernorm")?,
            feed_forward: of.feed_forward(kind)?,
            feed_forward_norm: norm(second)?,
            after_feed_forward: after(third)?,
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
        let norm = self.norm(&load, "norm", self.hidden)?;
        pool_normed(backend, &norm, part, pooling.unwrap_or(Pooling::Last))
    }
}
