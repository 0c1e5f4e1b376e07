//! Model Stock: how far to go from the base to the mean of models, by the angle between them.

use super::elementwise::{Combination, Elementwise, Slab, Slabs, combine_lines};
use super::gram::{self, Along, Gram};
use super::table::{Base, Calibration, Description, Kind, Strength, switch};
use super::values::Values;
use crate::backend::{Backend, Result};

/// `model_stock`
pub const METHOD: Description = Description {
    name: "model_stock",
    line: "goes from the base towards the mean of the models as far as the angle between their differences says",
    formula: "c = mean over pairs of cos(d_i, d_j); t = N c/(1 + (N-1) c), 0 where that denominator is under 1e-6;\n\
              W = t mean W_i + (1-t) b",
    source: "Jang et al., ECCV 2024 (arXiv 2403.19522)",
    kind: Kind::Elementwise { passes: 1 },
    models: (2, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[switch("filter_wise", false, "an angle for every row instead of every tensor")],
    example: "filter_wise: false",
};

/// Model Stock of a tensor.
pub struct ModelStock {
    filter_wise: bool,
    models: usize,
}

impl ModelStock {
    fn ratio(&self, gram: &Gram) -> f64 {
        let n = gram.len();
        let mut sum = 0.0;
        for i in 0..n {
            for j in i + 1..n {
                let norms = (gram.norm(i) * gram.norm(j)).max(1e-6);
                sum += (gram.at(i, j) / norms).clamp(-1.0, 1.0);
            }
        }
        let (n, pairs) = (n as f64, (n * (n - 1) / 2) as f64);
        let cosine = sum / pairs;
        let denominator = 1.0 + (n - 1.0) * cosine;
        if denominator.abs() < 1e-6 { 0.0 } else { n * cosine / denominator }
    }
}

impl Elementwise for ModelStock {
    type Learned = Combination;

    fn new(values: &Values) -> std::result::Result<Self, String> {
        if values.models() < 2 {
            return Err("two models at least are needed beside the base".to_owned());
        }
        Ok(ModelStock { filter_wise: values.is_on("filter_wise"), models: values.models() })
    }

    fn by_rows(&self) -> bool {
        self.filter_wise
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Combination, S::Error> {
        let mut share = 0.0;
        if !self.filter_wise {
            let gram = gram::of_tensor(backend, slabs).await?;
            if !gram.is_empty() {
                share = self.ratio(&gram.of_deltas()) / self.models as f64;
            }
        }
        Ok(Combination::of_deltas(vec![share; self.models]))
    }

    async fn apply<B: Backend>(
        &self,
        backend: &B,
        sum: &Combination,
        slab: Slab<B::Tensor>,
    ) -> Result<B::Tensor> {
        if !self.filter_wise {
            return sum.apply(backend, &slab);
        }
        let grams = gram::products(backend, &slab.base, &slab.deltas, Along::Rows).await?;
        let shares = grams.iter().map(|gram| (self.ratio(&gram.of_deltas()) / self.models as f64) as f32);
        let shares: Vec<f32> = shares.collect();
        let mut lines = vec![shares; self.models + 1];
        lines[0].fill(0.0);
        combine_lines(backend, &slab, &lines, false)
    }
}
