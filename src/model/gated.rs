//! Gated feed-forward layers.

use super::block::columns;
use super::{Linear, Part, Result, Tap};
use crate::backend::layers::{Activation, Layers};
use crate::backend::{Backend, Tensor};

/// `down(activation(gate(x)) * up(x))`
pub struct Gated<B: Backend> {
    /// To the gate, and to what is gated.
    pub way_in: WayIn<B>,
    /// Back.
    pub down: Linear<B>,
    /// Of the gate.
    pub activation: Activation,
}

/// How a gated layer comes to its gate and to what is gated.
pub enum WayIn<B: Backend> {
    /// By a layer for each.
    Separate {
        /// The gate.
        gate: Linear<B>,
        /// What is gated.
        up: Linear<B>,
    },
    /// Side by side in one layer, the gate first.
    Fused(Linear<B>),
}

impl<B: Layers> Gated<B> {
    /// One layer for each input, in the order the tap sees them.
    pub(super) fn layers(&self) -> [&Linear<B>; 2] {
        let (WayIn::Separate { gate: first, .. } | WayIn::Fused(first)) = &self.way_in;
        [first, &self.down]
    }

    pub(super) async fn apply(
        &self,
        backend: &B,
        x: &B::Tensor,
        part: &Part<B>,
        tap: &mut impl Tap<B>,
    ) -> Result<B::Tensor> {
        let [mut wide, up] = match &self.way_in {
            WayIn::Separate { gate, up } => {
                tap.input(&[&gate.name, &up.name], x, part).await?;
                [gate.apply(backend, x, tap)?, up.apply(backend, x, tap)?]
            }
            WayIn::Fused(layer) => {
                tap.input(&[&layer.name], x, part).await?;
                let both = layer.apply(backend, x, tap)?;
                columns(backend, &both, [both.shape().cols / 2; 2])?
            }
        };
        backend.activate_gated(&mut wide, &up, self.activation)?;
        drop(up);
        tap.input(&[&self.down.name], &wide, part).await?;
        self.down.apply(backend, &wide, tap)
    }
}
