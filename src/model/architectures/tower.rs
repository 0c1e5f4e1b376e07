//! Vision transformers: patches to tokens, norms before the halves of a block. A family is a [`Tower`] with its names.

use super::super::{
    After, Block, FeedForward, Gated, InputKind, Linear, Loader, Order, Part, Pooling, Qkv, Result, Samples,
    SelfAttention, WayIn, Weights,
};
use super::text::encoder_attention;
use super::vision::{Grid, ImageEmbedding, embed};
use super::{Architecture, Sizes, pool, pool_normed};
use crate::backend::layers::{Activation, Layers};
use crate::backend::{Op, Tensor};

/// Sizes of a tower, and what its tensors are called.
pub struct Tower {
    pub prefix: &'static str,
    pub names: &'static Names,
    pub grid: Grid,
    pub blocks: usize,
    pub hidden: usize,
    pub wide: usize,
    pub heads: usize,
    pub activation: Activation,
    pub epsilon: f32,
    /// How tokens become a feature.
    pub head: Head,
    /// Gate and what is gated are one layer, in place of a plain feed-forward layer ([`Names::fused_gated`]).
    pub gated: bool,
}

/// How tokens become a feature.
#[derive(Clone, Debug, PartialEq)]
pub enum Head {
    /// The norm, and a token, the first unless the task pools otherwise.
    Pooled,
    /// The norm of the first token and, where there is one, a projection; a task has no say.
    Projected(Option<Projection>),
    /// The norm, and what a learned query finds among the tokens.
    Probed,
}

/// A linear layer without a bias.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// In full.
    pub name: String,
    pub size: usize,
    /// Whether it is stored as `d x size`.
    pub across: bool,
}

/// Names after the prefix; those of a block after `BLOCKS.index.`
pub struct Names {
    pub patches: &'static str,
    /// Of the patches.
    pub bias: Option<&'static str>,
    /// The class token, and how many dimensions of 1 it has before its width.
    pub class: Option<(&'static str, usize)>,
    /// Of `[1,] tokens x d`; how many dimensions of 1.
    pub positions: (&'static str, usize),
    pub norm_before: Option<&'static str>,
    pub norm_after: &'static str,
    pub blocks: &'static str,
    pub qkv: QkvNames,
    pub out: &'static str,
    pub norms: [&'static str; 2],
    pub up: &'static str,
    pub down: &'static str,
    /// Gate and what is gated in one, and back.
    pub fused_gated: Option<[&'static str; 2]>,
    /// Factors of the halves' results.
    pub scales: Option<[&'static str; 2]>,
}

/// What the projections to queries, keys and values are called.
pub enum QkvNames {
    Separate([&'static str; 3]),
    /// The weight and the bias of one layer.
    Fused(&'static str, &'static str),
}

impl Tower {
    fn tokens(&self) -> usize {
        self.grid.patches() + usize::from(self.names.class.is_some())
    }
}

impl<B: Layers> Architecture<B> for Tower {
    fn sizes(&self) -> Sizes {
        let hidden = self.hidden;
        let features = match &self.head {
            Head::Projected(Some(projection)) => projection.size,
            _ => hidden,
        };
        let widest = self.wide.max(3 * hidden);
        let inputs = InputKind::Images { grid: self.grid, tokens: self.tokens() };
        Sizes { blocks: self.blocks, hidden, features, widest, inputs }
    }

    fn embed(&self, backend: &B, weights: &dyn Weights, samples: &Samples) -> Result<Part<B>> {
        let (load, names, d) = (Loader::new(backend, weights, self.prefix), self.names, self.hidden);
        let (positions, ones) = names.positions;
        let embedding = ImageEmbedding {
            patches: load.patch_weight(names.patches, d, self.grid.channels, self.grid.patch)?,
            bias: names.bias.map(|bias| load.vector(bias, d)).transpose()?,
            class: match names.class {
                None => None,
                Some((class, 0)) => Some(load.vector(class, d)?),
                Some((class, ones)) => Some(load.with_leading_ones(class, ones - 1, 1, d)?),
            },
            positions: load.with_leading_ones(positions, ones, self.tokens(), d)?,
        };
        let part = embed(backend, self.grid, &embedding, samples)?;
        let Some(norm) = names.norm_before else { return Ok(part) };
        let norm = load.layer_norm(norm, d, self.epsilon)?;
        Ok(Part { hidden: norm.apply(backend, &part.hidden)?, ..part })
    }

    fn block(&self, backend: &B, weights: &dyn Weights, index: usize) -> Result<Block<B>> {
        let (load, names, d, wide) =
            (Loader::new(backend, weights, self.prefix), self.names, self.hidden, self.wide);
        let at = format!("{}.{index}", names.blocks);
        let linear = |name: &str, d_in, d_out| -> Result<Linear<B>> {
            load.linear(&format!("{at}.{name}"), d_in, d_out)
        };
        let norm = |name: &str| load.layer_norm(&format!("{at}.{name}"), d, self.epsilon);
        let qkv = match names.qkv {
            QkvNames::Separate([q, k, v]) => {
                Qkv::Separate([linear(q, d, d)?, linear(k, d, d)?, linear(v, d, d)?])
            }
            QkvNames::Fused(weight, bias) => {
                let (weight, bias) = (format!("{at}.{weight}"), format!("{at}.{bias}"));
                Qkv::Fused(load.linear_named(&weight, &bias, d, 3 * d)?, [d; 3])
            }
        };
        let activation = self.activation;
        let feed_forward = match names.fused_gated.filter(|_| self.gated) {
            Some([both, down]) => FeedForward::Gated(Gated {
                way_in: WayIn::Fused(linear(both, d, 2 * wide)?),
                down: linear(down, wide, d)?,
                activation: Activation::Silu,
            }),
            None => FeedForward::Plain {
                up: linear(names.up, d, wide)?,
                down: linear(names.down, wide, d)?,
                activation,
            },
        };
        let after = |half: usize| -> Result<After<B>> {
            let Some(scales) = names.scales else { return Ok(After::Nothing) };
            Ok(After::Scale(load.vector(&format!("{at}.{}", scales[half]), d)?))
        };
        Ok(Block {
            order: Order::NormFirst,
            attention: SelfAttention {
                qkv,
                head_norms: None,
                rotary: None,
                out: linear(names.out, d, d)?,
                attention: encoder_attention(d, self.heads),
            },
            attention_norm: norm(names.norms[0])?,
            after_attention: after(0)?,
            feed_forward,
            feed_forward_norm: norm(names.norms[1])?,
            after_feed_forward: after(1)?,
        })
    }

    fn features(
        &self,
        backend: &B,
        weights: &dyn Weights,
        part: &Part<B>,
        pooling: Option<Pooling>,
    ) -> Result<B::Tensor> {
        let load = Loader::new(backend, weights, self.prefix);
        let norm = load.layer_norm(self.names.norm_after, self.hidden, self.epsilon)?;
        match &self.head {
            Head::Pooled => pool_normed(backend, &norm, part, pooling.unwrap_or(Pooling::First)),
            Head::Projected(projection) => {
                let class = norm.apply(backend, &pool(backend, &part.hidden, part, Pooling::First)?)?;
                let Some(Projection { name, size, across }) = projection else { return Ok(class) };
                let load = Loader::new(backend, weights, "");
                let (shape, op) = match across {
                    true => ([self.hidden, *size], Op::None),
                    false => ([*size, self.hidden], Op::Transpose),
                };
                let projection = load.matrix(name, shape[0], shape[1])?;
                Ok(backend.matmul(&class, Op::None, &projection, op)?)
            }
            Head::Probed => self.probed(backend, &load, norm.apply(backend, &part.hidden)?, part),
        }
    }
}

impl Tower {
    /// Attention of one learned query to all tokens, then a feed-forward layer with its norm and a residual connection.
    fn probed<B: Layers>(
        &self,
        backend: &B,
        load: &Loader<'_, B>,
        tokens: B::Tensor,
        part: &Part<B>,
    ) -> Result<B::Tensor> {
        let d = self.hidden;
        let projection = load.matrix("head.attention.in_proj_weight", 3 * d, d)?;
        let bias = load.vector("head.attention.in_proj_bias", 3 * d)?;
        let project = |x: &B::Tensor, place: usize| -> Result<B::Tensor> {
            let weight = backend.slice(&projection, 0..1, place * d..(place + 1) * d, 0..d)?;
            let mut y = backend.linear(x, &weight, Op::Transpose)?;
            backend.add_bias(&mut y, &backend.slice(&bias, 0..1, 0..1, place * d..(place + 1) * d)?)?;
            Ok(y)
        };
        // the query of every token is the probe's, and that of each sample's first token is read
        let query = project(&load.with_leading_ones("head.probe", 1, 1, d)?, 0)?;
        let queries = backend.gather_rows(&query, &vec![0; tokens.shape().rows])?;
        let (keys, values) = (project(&tokens, 1)?, project(&tokens, 2)?);
        let attention = encoder_attention(d, self.heads);
        let found = backend.attention(&queries, &keys, &values, &part.segments, attention, None)?;
        let found = pool(backend, &found, part, Pooling::First)?;
        let mut unused = super::super::NoTap;
        let mut x = load.linear("head.attention.out_proj", d, d)?.apply(backend, &found, &mut unused)?;
        let normed = load.layer_norm("head.layernorm", d, self.epsilon)?.apply(backend, &x)?;
        let mut wide = load.linear("head.mlp.fc1", d, self.wide)?.apply(backend, &normed, &mut unused)?;
        backend.activate(&mut wide, self.activation)?;
        let y = load.linear("head.mlp.fc2", self.wide, d)?.apply(backend, &wide, &mut unused)?;
        backend.add(&y, &mut x)?;
        Ok(x)
    }
}
