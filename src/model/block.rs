//! The parts transformers are made of.

use super::{Part, Result, Tap};
use crate::backend::layers::{Activation, Attention, Layers};
use crate::backend::{Backend, Op, Shape, Tensor};

/// `y = x W^T + b`.
pub struct Linear<B: Backend> {
    /// The weight's full name.
    pub name: String,
    /// `W`, `1 x d_out x d_in`.
    pub weight: B::Tensor,
    /// `b`, `1 x 1 x d_out`.
    pub bias: Option<B::Tensor>,
}

impl<B: Layers> Linear<B> {
    /// Applied to every row of `x`, and shown to the tap.
    pub fn apply(&self, backend: &B, x: &B::Tensor, tap: &mut impl Tap<B>) -> Result<B::Tensor> {
        let mut y = backend.linear(x, &self.weight, Op::Transpose)?;
        if let Some(bias) = &self.bias {
            backend.add_bias(&mut y, bias)?;
        }
        tap.output(&self.name, &mut y)?;
        Ok(y)
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
}

impl<B: Layers> Norm<B> {
    /// Applied to every row of `x`.
    pub fn apply(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        Ok(match self {
            Norm::Layer { weight, bias, epsilon } => backend.layer_norm(x, weight, bias, *epsilon)?,
            Norm::Rms { weight, epsilon } => backend.rms_norm(x, weight, *epsilon)?,
        })
    }
}

/// The projections to queries, keys and values.
pub enum Qkv<B: Backend> {
    /// Three layers with one input.
    Separate([Linear<B>; 3]),
    /// One layer whose output is queries, keys and values side by side.
    Fused(Linear<B>),
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
            Qkv::Fused(layer) => {
                tap.input(&[&layer.name], x, part).await?;
                let y = layer.apply(backend, x, tap)?;
                let Shape { rows, cols, .. } = y.shape();
                let third = |i: usize| backend.slice(&y, 0..1, 0..rows, i * cols / 3..(i + 1) * cols / 3);
                Ok([third(0)?, third(1)?, third(2)?])
            }
        }
    }
}

/// Multi-head self-attention with its projections.
pub struct SelfAttention<B: Backend> {
    /// To queries, keys and values.
    pub qkv: Qkv<B>,
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
        if let Some([cos, sin]) = part.rotary.as_deref() {
            backend.rotary(&mut q, cos, sin)?;
            backend.rotary(&mut k, cos, sin)?;
        }
        let heads = backend.attention(&q, &k, &v, &part.segments, self.attention)?;
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
    /// `down(activation(gate(x)) * up(x))`
    Gated {
        /// The gate.
        gate: Linear<B>,
        /// What is gated.
        up: Linear<B>,
        /// Back.
        down: Linear<B>,
        /// Of the gate.
        activation: Activation,
    },
}

impl<B: Layers> FeedForward<B> {
    async fn apply(
        &self,
        backend: &B,
        x: &B::Tensor,
        part: &Part<B>,
        tap: &mut impl Tap<B>,
    ) -> Result<B::Tensor> {
        let (wide, down) = match self {
            FeedForward::Plain { up, down, activation } => {
                tap.input(&[&up.name], x, part).await?;
                let mut wide = up.apply(backend, x, tap)?;
                backend.activate(&mut wide, *activation)?;
                (wide, down)
            }
            FeedForward::Gated { gate, up, down, activation } => {
                tap.input(&[&gate.name, &up.name], x, part).await?;
                let mut wide = gate.apply(backend, x, tap)?;
                backend.activate_gated(&mut wide, &up.apply(backend, x, tap)?, *activation)?;
                (wide, down)
            }
        };
        tap.input(&[&down.name], &wide, part).await?;
        down.apply(backend, &wide, tap)
    }
}

/// Where the norms of a block stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `x + f(norm(x))`
    NormFirst,
    /// `norm(x + f(x))`
    NormLast,
}

/// One transformer block: attention, then feed-forward, each with a residual connection.
pub struct Block<B: Backend> {
    /// Where the norms stand.
    pub order: Order,
    /// The first half.
    pub attention: SelfAttention<B>,
    /// Its norm.
    pub attention_norm: Norm<B>,
    /// The second half.
    pub feed_forward: FeedForward<B>,
    /// Its norm.
    pub feed_forward_norm: Norm<B>,
}

impl<B: Layers> Block<B> {
    /// The weight by which each input of a linear layer is known, and its dimensions, in the order the tap sees them.
    pub fn inputs(&self) -> Vec<(&str, usize)> {
        let first = |layer: &'_ Linear<B>| -> usize { layer.weight.shape().cols };
        let qkv = match &self.attention.qkv {
            Qkv::Separate([q, ..]) => q,
            Qkv::Fused(qkv) => qkv,
        };
        let (up, down) = match &self.feed_forward {
            FeedForward::Plain { up, down, .. } => (up, down),
            FeedForward::Gated { gate, down, .. } => (gate, down),
        };
        [qkv, &self.attention.out, up, down].map(|l| (l.name.as_str(), first(l))).to_vec()
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
            Order::NormFirst => {
                let normed = self.attention_norm.apply(backend, hidden)?;
                let mut x = self.attention.apply(backend, &normed, part, tap).await?;
                backend.add(hidden, &mut x)?;
                let normed = self.feed_forward_norm.apply(backend, &x)?;
                let mut y = self.feed_forward.apply(backend, &normed, part, tap).await?;
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
}
