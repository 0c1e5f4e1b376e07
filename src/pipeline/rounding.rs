//! How much of each expert's delta is nothing but the rounding of its 16-bit file.

use serde::{Deserialize, Serialize};

/// Share of a delta above which its rounding is worth a warning.
pub const WARN_ABOVE: f64 = 0.01;

/// Sums over all tensors of one expert.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Rounding {
    squared_ulps: f64,
    squared_norm: f64,
}

impl Rounding {
    /// Counts values as they are stored, by their [`sum_of_squared_ulps`](crate::checkpoint::sum_of_squared_ulps).
    pub fn stored(&mut self, squared_ulps: f64) {
        self.squared_ulps += squared_ulps;
    }

    /// Counts a delta.
    pub fn delta(&mut self, norm: f64) {
        self.squared_norm += norm * norm;
    }

    /// `sqrt(sum ulp^2 / 12) / ||dW||`: the expected relative error of the expert's delta. A value rounded to nearest is
    /// off by a uniformly distributed part of its ulp, which has variance `ulp^2 / 12`.
    pub fn damage(&self) -> Option<f64> {
        (self.squared_norm > 0.0 && self.squared_ulps > 0.0)
            .then(|| (self.squared_ulps / 12.0 / self.squared_norm).sqrt())
    }
}

/// Adds what one unit of work has counted to the sums over those before it. Unit by unit in their order, whoever did them, so that
/// the sums do not depend on that.
pub(super) fn add(sums: &mut [Rounding], unit: &[Rounding]) {
    for (sum, unit) in sums.iter_mut().zip(unit) {
        sum.squared_ulps += unit.squared_ulps;
        sum.squared_norm += unit.squared_norm;
    }
}

/// What is said of experts whose files are too coarse, each with its damage; none if there are none.
pub(super) fn warning(coarse: &[(&str, f64)]) -> Option<String> {
    let percent = |(expert, damage): &(&str, f64)| format!("{expert} by about {:.1}%", 100.0 * damage);
    let (last, others) = coarse.split_last()?;
    let listed = match others {
        [] => percent(last),
        _ => format!("{} and {}", others.iter().map(percent).collect::<Vec<_>>().join(", "), percent(last)),
    };
    Some(format!(
        "16-bit files move the deltas of experts: {listed}; their weights are rounded more coarsely than fine-tuning changed \
         them, and what is decomposed is partly that noise. Use float32 checkpoints or task vectors if there are any"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Dtype;
    use crate::checkpoint::sum_of_squared_ulps;
    use half::bf16;

    #[test]
    fn the_damage_is_the_expected_error_of_rounding() {
        // Weights spread over a binade, moved by a delta of 1 part in 200, then rounded to bf16.
        let mut rounding = Rounding::default();
        let (mut error, mut norm) = (0.0, 0.0);
        for i in 0..50_000u32 {
            let weight = 1.0 + f64::from(i) / 50_000.0;
            let delta = if i % 2 == 0 { 0.005 } else { -0.005 };
            let exact = (weight + delta) as f32;
            let stored = bf16::from_f32(exact);
            rounding.stored(sum_of_squared_ulps(Dtype::Bf16, &stored.to_le_bytes(), None));
            error += (f64::from(stored.to_f32()) - f64::from(exact)).powi(2);
            norm += delta * delta;
        }
        rounding.delta(f64::sqrt(norm));
        let measured = f64::sqrt(error / norm);
        let estimate = rounding.damage().unwrap();
        assert!((estimate / measured - 1.0).abs() < 0.02, "{estimate} {measured}");
    }
}
