//! RAM: what one model alone has changed stays whole, what several have changed is averaged.

use super::elementwise::{Elementwise, Slab, Slabs, narrow, scaled};
use super::table::{Base, Calibration, Description, Kind, Parameter, Range, Strength, number};
use super::values::Values;
use crate::backend::{Across, Backend, Result};

/// `ram`
pub const METHOD: Description = Description {
    name: "ram",
    line: "keeps whole what one model alone has changed, and averages what several have",
    formula: "an element counts for model i where |d_i| > epsilon; d = d_i where one counts, the mean of those that count else",
    source: "as mergekit 0.1.5 has it (RAM, 2026)",
    kind: Kind::Elementwise { passes: 0 },
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Lambda,
    parameters: &[EPSILON],
    example: "epsilon: 1e-5",
};

/// `ramplus_tl`
pub const PLUS: Description = Description {
    name: "ramplus_tl",
    line: "ram, with what one model alone has changed amplified by how much it shares elsewhere in the tensor",
    formula: "as ram; elements of model i alone are multiplied by 1 + r clamp(rho_i, 0, alpha), rho_i = its shared elements over its\n\
              own in this tensor",
    kind: Kind::Elementwise { passes: 1 },
    strength: Strength::OnlyLambda,
    parameters: &[
        EPSILON,
        number("r", Range::NOT_NEGATIVE, 0.1, "how much is amplified"),
        number("alpha", Range::NOT_NEGATIVE, 0.2, "the most that shared over own counts"),
    ],
    example: "r: 0.1\nalpha: 0.2",
    ..METHOD
};

const EPSILON: Parameter = number("epsilon", Range::NOT_NEGATIVE, 1e-5, "differences up to it are none");

/// RAM of a tensor, or RAM+ with factors of its own for every model.
pub struct Ram<const PLUS: bool> {
    epsilon: f32,
    r: f64,
    alpha: f64,
    lambda: f64,
    models: usize,
}

impl<const PLUS: bool> Elementwise for Ram<PLUS> {
    type Learned = Vec<f64>;

    fn new(values: &Values) -> std::result::Result<Self, String> {
        let number = |name| values.number(name);
        let (epsilon, models) = (number("epsilon") as f32, values.models());
        Ok(Ram { epsilon, r: number("r"), alpha: number("alpha"), lambda: number("lambda"), models })
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Vec<f64>, S::Error> {
        if !PLUS {
            return Ok(vec![1.0; self.models]);
        }
        let mut counts = vec![[0f64; 2]; self.models];
        for index in 0..slabs.count() {
            let slab = slabs.slab(index).await?;
            for (task, counts) in counts.iter_mut().enumerate() {
                for (shared, count) in [false, true].into_iter().zip(counts) {
                    let rule = Across::Having { epsilon: self.epsilon, task, shared };
                    let ones = backend.across(&slab.deltas, rule)?;
                    let sum = backend.download(&backend.inner_products(&ones, &ones)?).await?;
                    *count += sum.iter().map(|&sum| f64::from(sum)).sum::<f64>();
                }
            }
        }
        let factor = |[own, shared]: &[f64; 2]| {
            let share = if *own > 0.0 { shared / own } else { 0.0 };
            1.0 + self.r * share.clamp(0.0, self.alpha)
        };
        Ok(counts.iter().map(factor).collect())
    }

    async fn apply<B: Backend>(
        &self,
        backend: &B,
        factors: &Vec<f64>,
        slab: Slab<B::Tensor>,
    ) -> Result<B::Tensor> {
        let rule = Across::Share { epsilon: self.epsilon, factors: &narrow(factors) };
        scaled(backend, backend.across(&slab.deltas, rule)?, self.lambda)
    }
}
