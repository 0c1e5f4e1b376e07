//! From merged deltas to weights: inter-layer scaling and alpha.

use super::Scale;
use crate::backend::{Backend, Dtype, Result};

/// `beta_l = (||dW_l||_F / mean over its group)^2` for layers whose norms and group labels are given (paper 2; paper 1,
/// section 3.3). A layer without a group gets 1; `None` switches the scaling off.
pub fn inter_layer_scales<G: PartialEq>(
    norms: &[f64],
    groups: &[Option<G>],
    scale: Option<Scale>,
) -> Vec<f64> {
    let beta = |(norm, group): (&f64, &Option<G>)| {
        let (Some(Scale { exponent, polarity }), Some(group)) = (scale, group) else { return 1.0 };
        let members: Vec<f64> =
            norms.iter().zip(groups).filter(|(_, g)| g.as_ref() == Some(group)).map(|(&n, _)| n).collect();
        polarity.scale(*norm, members.iter().sum::<f64>() / members.len() as f64, exponent)
    };
    norms.iter().zip(groups).map(beta).collect()
}

/// `W = W_0 + alpha beta dW`, rounded, as little-endian bytes; `delta` holds anything afterwards.
pub async fn assemble<B: Backend>(
    backend: &B,
    base: &B::Tensor,
    delta: &mut B::Tensor,
    (alpha, beta): (f64, f64),
    dtype: Dtype,
) -> Result<Vec<u8>> {
    backend.pack_sum(base, (alpha * beta) as f32, delta, dtype).await
}
