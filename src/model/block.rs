//! The parts transformers are made of.

use super::{Error, Gated, Mixture, Part, Result, Tap};
use crate::backend::layers::{Activation, Attention, Layers};
use crate::backend::{Backend, Op, Shape, Tensor};
use std::rc::Rc;

/// `y = x W^T + b`.
pub struct Linear<B: Backend> {
    /// The weight's full name.
    pub name: String,
    /// `W`, `1 x d_out x d_in`; or `W^T`.
    pub weight: B::Tensor,
    /// What makes `W^T` of the weight: [`Op::None`] where it is stored so (GPT-2's `Conv1D`).
    pub op: Op,
    /// `b`, `1 x 1 x d_out`.
    pub bias: Option<B::Tensor>,
}

impl<B: Layers> Linear<B> {
    /// Applied to every row of `x`, and shown to the tap.
    pub fn apply(&self, backend: &B, x: &B::Tensor, tap: &mut impl Tap<B>) -> Result<B::Tensor> {
        let mut y = backend.linear(x, &self.weight, self.op)?;
        if let Some(bias) = &self.bias {
            backend.add_bias(&mut y, bias)?;
        }
        tap.output(&self.name, &mut y)?;
        Ok(y)
    }

    /// `d_in`
    fn inputs(&self) -> usize {
        self.op.apply(self.weight.shape()).0
    }
}

/// Normalisation of every token.
pub enum Norm<B: Backend> {
    /// Layer norm.
    Layer {
        /// `1 x 1 x d`.
        weight: B::Tensor,
        /// `1 x 1 x d`.
        bias: B::Tensor,
        /// Added to the variance.
        epsilon: f32,
    },
    /// RMS norm.
    Rms {
        /// `1 x 1 x d`.
        weight: B::Tensor,
        /// Added to the mean square.
        epsilon: f32,
    },
    /// None: tokens pass as they are.
    Identity,
}

impl<B: Layers> Norm<B> {
    /// Applied to every row of `x`.
    pub fn apply(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        Ok(match self {
            Norm::Layer { weight, bias, epsilon } => backend.layer_norm(x, weight, bias, *epsilon)?,
            Norm::Rms { weight, epsilon } => backend.rms_norm(x, weight, *epsilon)?,
            Norm::Identity => backend.duplicate(x)?,
        })
    }

    /// Applied to every head of every row of `x`: the columns are `heads x d`.
    fn apply_to_heads(&self, backend: &B, x: B::Tensor) -> Result<B::Tensor> {
        let shape = x.shape();
        let (Norm::Layer { weight, .. } | Norm::Rms { weight, .. }) = self else { return Ok(x) };
        let d = weight.shape().cols;
        let heads = x.reshape(Shape::matrix(shape.len() / d.max(1), d))?;
        Ok(self.apply(backend, &heads)?.reshape(shape)?)
    }
}

/// The projections to queries, keys and values.
pub enum Qkv<B: Backend> {
    /// Three layers with one input.
    Separate([Linear<B>; 3]),
    /// One layer whose output is queries, keys and values side by side, so many columns each.
    Fused(Linear<B>, [usize; 3]),
    /// One layer whose output is the queries, keys and values of the first head, then those of the next.
    ByHead(Linear<B>, usize),
}

impl<B: Layers> Qkv<B> {
    async fn apply(
        &self,
        backend: &B,
        x: &B::Tensor,
        part: &Part<B>,
        tap: &mut impl Tap<B>,
    ) -> Result<[B::Tensor; 3]> {
        match self {
            Qkv::Separate(layers) => {
                tap.input(&layers.each_ref().map(|l| l.name.as_str()), x, part).await?;
                let [q, k, v] = layers;
                Ok([q.apply(backend, x, tap)?, k.apply(backend, x, tap)?, v.apply(backend, x, tap)?])
            }
            Qkv::Fused(layer, [q, k, v]) => {
                tap.input(&[&layer.name], x, part).await?;
                columns(backend, &layer.apply(backend, x, tap)?, [*q, *k, *v])
            }
            Qkv::ByHead(layer, heads) => {
                tap.input(&[&layer.name], x, part).await?;
                let y = layer.apply(backend, x, tap)?;
                let Shape { rows, cols, .. } = y.shape();
                let head = cols / heads / 3;
                let by_head = y.reshape(Shape::matrix(rows * heads, 3 * head))?;
                let [q, k, v] = columns(backend, &by_head, [head; 3])?;
                let whole = Shape::matrix(rows, heads * head);
                Ok([q.reshape(whole)?, k.reshape(whole)?, v.reshape(whole)?])
            }
        }
    }
}

/// `x` cut into parts of so many columns.
pub(super) fn columns<B: Layers, const N: usize>(
    backend: &B,
    x: &B::Tensor,
    widths: [usize; N],
) -> Result<[B::Tensor; N]> {
    let mut parts = Vec::with_capacity(N);
    let mut at = 0;
    for width in widths {
        parts.push(backend.slice(x, 0..1, 0..x.shape().rows, at..at + width)?);
        at += width;
    }
    parts.try_into().map_err(|_| Error::Config("a layer's columns".into()))
}

/// Multi-head self-attention with its projections.
pub struct SelfAttention<B: Backend> {
    /// To queries, keys and values.
    pub qkv: Qkv<B>,
    /// Norms of every head of the queries and of the keys.
    pub head_norms: Option<[Norm<B>; 2]>,
    /// Which of the part's tables of rotary positions turns queries and keys.
    pub rotary: Option<usize>,
    /// From the heads back to the hidden state.
    pub out: Linear<B>,
    /// Heads, mask and scale.
    pub attention: Attention,
}

impl<B: Layers> SelfAttention<B> {
    async fn apply(
        &self,
        backend: &B,
        x: &B::Tensor,
        part: &Part<B>,
        tap: &mut impl Tap<B>,
    ) -> Result<B::Tensor> {
        let [mut q, mut k, v] = self.qkv.apply(backend, x, part, tap).await?;
        if let Some([of_queries, of_keys]) = &self.head_norms {
            q = of_queries.apply_to_heads(backend, q)?;
            k = of_keys.apply_to_heads(backend, k)?;
        }
        if let Some([cos, sin]) = self.rotary.and_then(|table| part.rotary.get(table)).map(Rc::as_ref) {
            let head_dim = q.shape().cols / self.attention.heads.max(1);
            backend.rotary(&mut q, cos, sin, head_dim)?;
            backend.rotary(&mut k, cos, sin, head_dim)?;
        }
        let positions = part.positions.as_deref();
        let heads = backend.attention(&q, &k, &v, &part.segments, self.attention, positions)?;
        drop((q, k, v));
        tap.input(&[&self.out.name], &heads, part).await?;
        self.out.apply(backend, &heads, tap)
    }
}

/// The feed-forward half of a block.
pub enum FeedForward<B: Backend> {
    /// `down(activation(up(x)))`
    Plain {
        /// To the wide layer.
        up: Linear<B>,
        /// Back.
        down: Linear<B>,
        /// Between the two.
        activation: Activation,
    },
    /// With a gate.
    Gated(Gated<B>),
    /// A mixture of experts.
    Mixture(Mixture<B>),
}

impl<B: Layers> FeedForward<B> {
    async fn apply(
        &self,
        backend: &B,
        x: &B::Tensor,
        part: &Part<B>,
        tap: &mut impl Tap<B>,
    ) -> Result<B::Tensor> {
        match self {
            FeedForward::Plain { up, down, activation } => {
                tap.input(&[&up.name], x, part).await?;
                let mut wide = up.apply(backend, x, tap)?;
                backend.activate(&mut wide, *activation)?;
                tap.input(&[&down.name], &wide, part).await?;
                down.apply(backend, &wide, tap)
            }
            FeedForward::Gated(gated) => gated.apply(backend, x, part, tap).await,
            FeedForward::Mixture(mixture) => mixture.apply(backend, x, part, tap).await,
        }
    }
}

/// Where the norms of a block stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `x + f(norm(x))`
    NormFirst,
    /// `norm(x + f(x))`
    NormLast,
    /// `x + f(norm(x)) + g(other_norm(x))`: both halves read what the block is given.
    Parallel,
}

/// What a half's result passes before it is added to the hidden state.
pub enum After<B: Backend> {
    /// Nothing.
    Nothing,
    /// One more norm (Gemma 2 and 3).
    Norm(Norm<B>),
    /// A factor for each column, `1 x 1 x d` (DINOv2).
    Scale(B::Tensor),
}

impl<B: Layers> After<B> {
    fn apply(&self, backend: &B, mut y: B::Tensor) -> Result<B::Tensor> {
        match self {
            After::Nothing => {}
            After::Norm(norm) => return norm.apply(backend, &y),
            After::Scale(factors) => backend.scale_columns(&mut y, factors)?,
        }
        Ok(y)
    }
}

/// One transformer block: attention, then feed-forward, each with a residual connection.
pub struct Block<B: Backend> {
    /// Where the norms stand.
    pub order: Order,
    /// The first half.
    pub attention: SelfAttention<B>,
    /// Its norm.
    pub attention_norm: Norm<B>,
    /// What follows it.
    pub after_attention: After<B>,
    /// The second half.
    pub feed_forward: FeedForward<B>,
    /// Its norm.
    pub feed_forward_norm: Norm<B>,
    /// What follows it.
    pub after_feed_forward: After<B>,
}

impl<B: Layers> Block<B> {
    /// The weight by which each input of a linear layer is known, and its dimensions, in the order the tap sees them. Experts of
    /// a mixture see a part of the tokens each.
    pub fn inputs(&self) -> Vec<(&str, usize)> {
        let qkv = match &self.attention.qkv {
            Qkv::Separate([layer, ..]) | Qkv::Fused(layer, _) | Qkv::ByHead(layer, _) => layer,
        };
        let mut layers = vec![qkv, &self.attention.out];
        match &self.feed_forward {
            FeedForward::Plain { up, down, .. } => layers.extend([up, down]),
            FeedForward::Gated(gated) => layers.extend(gated.layers()),
            FeedForward::Mixture(mixture) => layers.extend(mixture.layers()),
        }
        layers.into_iter().map(|layer| (layer.name.as_str(), layer.inputs())).collect()
    }

    /// The hidden state after the block. `tap` sees the input of every linear layer.
    pub async fn apply(
        &self,
        backend: &B,
        hidden: &B::Tensor,
        part: &Part<B>,
        tap: &mut impl Tap<B>,
    ) -> Result<B::Tensor> {
        match self.order {
            Order::NormFirst | Order::Parallel => {
                let x = self.attended(backend, hidden, part, tap).await?;
                let read = if self.order == Order::Parallel { hidden } else { &x };
                let mut y = self.fed_forward(backend, read, part, tap).await?;
                backend.add(&x, &mut y)?;
                Ok(y)
            }
            Order::NormLast => {
                let mut x = self.attention.apply(backend, hidden, part, tap).await?;
                backend.add(hidden, &mut x)?;
                let x = self.attention_norm.apply(backend, &x)?;
                let mut y = self.feed_forward.apply(backend, &x, part, tap).await?;
                backend.add(&x, &mut y)?;
                self.feed_forward_norm.apply(backend, &y)
            }
        }
    }

    /// `x + after(attention(norm(x)))`
    async fn attended(
        &self,
        backend: &B,
        x: &B::Tensor,
        part: &Part<B>,
        tap: &mut impl Tap<B>,
    ) -> Result<B::Tensor> {
        let normed = self.attention_norm.apply(backend, x)?;
        let y = self.attention.apply(backend, &normed, part, tap).await?;
        let mut y = self.after_attention.apply(backend, y)?;
        backend.add(x, &mut y)?;
        Ok(y)
    }

    /// `after(feed_forward(norm(x)))`
    async fn fed_forward(
        &self,
        backend: &B,
        x: &B::Tensor,
        part: &Part<B>,
        tap: &mut impl Tap<B>,
    ) -> Result<B::Tensor> {
        let normed = self.feed_forward_norm.apply(backend, x)?;
        let y = self.feed_forward.apply(backend, &normed, part, tap).await?;
        self.after_feed_forward.apply(backend, y)
    }
}
