//! NuSLERP: spherical interpolation between two models, or between their differences to a base.

use super::elementwise::{Combination, Elementwise, Slab, Slabs, combine_lines};
use super::gram::{self, Along, Gram};
use super::table::{Base, Calibration, Description, Kind, Strength, WEIGHT, switch};
use super::values::Values;
use crate::backend::{Backend, Result, Tensor};

/// `nuslerp`
pub const METHOD: Description = Description {
    name: "nuslerp",
    line: "walks from one model to another along the arc between them, or between their differences to a base",
    formula: "t = w_2/(w_1 + w_2), 0.5 where that sum is under 1e-6; theta is the angle between the two:\n\
              sin((1-t) theta)/sin theta x_1 + sin(t theta)/sin theta x_2, linear where 1 - cos^2 theta <= 1e-16.\n\
              A tensor is one vector; with nuslerp_flatten: false every row is one, with nuslerp_row_wise: true every column",
    source: "as mergekit 0.1.5 has it",
    kind: Kind::Elementwise { passes: 1 },
    models: (2, 2),
    base: Base::Optional,
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[
        WEIGHT,
        switch("nuslerp_flatten", true, "take each tensor as one vector"),
        switch("nuslerp_row_wise", false, "without flattening: vectors along the first axis, not the last"),
    ],
    example: "nuslerp_flatten: false",
};

/// NuSLERP of a tensor.
pub struct NuSlerp {
    t: f64,
    along: Along,
    has_base: bool,
}

/// What is known of a tensor.
pub enum Factors {
    /// All of it is one vector.
    All(Combination),
    /// Every row is one, and each slab tells those of its own.
    Rows,
    /// Those of every column.
    Columns(Vec<Vec<f32>>),
}

impl NuSlerp {
    /// Coefficients of both vectors.
    fn coefficients(&self, gram: &Gram) -> Combination {
        let gram = if self.has_base { gram.of_deltas() } else { gram.of_weights() };
        let [a, b] = [0, 1].map(|i| gram.norm(i).max(1e-7));
        let cosine = (gram.at(0, 1) / (a * b)).clamp(-1.0, 1.0);
        let (t, square) = (self.t, 1.0 - cosine * cosine);
        let models = if square <= 1e-16 {
            vec![1.0 - t, t]
        } else {
            let theta = cosine.acos();
            vec![((1.0 - t) * theta).sin() / theta.sin(), (t * theta).sin() / theta.sin()]
        };
        if self.has_base { Combination::of_deltas(models) } else { Combination::of_weights(models) }
    }

    /// For every row or column.
    fn lines(&self, grams: &[Gram]) -> Vec<Vec<f32>> {
        let mut lines = vec![Vec::new(); 3];
        for sum in grams.iter().map(|gram| self.coefficients(gram)) {
            lines[0].push(sum.base as f32);
            lines[1].push(sum.models[0] as f32);
            lines[2].push(sum.models[1] as f32);
        }
        lines
    }
}

impl Elementwise for NuSlerp {
    type Learned = Factors;

    fn new(values: &Values) -> std::result::Result<Self, String> {
        let weights = values.of_models("weight");
        let [first, second] = weights[..] else { return Err("two models are needed".to_owned()) };
        let sum = first + second;
        let along = match (values.is_on("nuslerp_flatten"), values.is_on("nuslerp_row_wise")) {
            (true, _) => Along::All,
            (false, false) => Along::Rows,
            (false, true) => Along::Columns,
        };
        let t = if sum.abs() < 1e-6 { 0.5 } else { second / sum };
        Ok(NuSlerp { t, along, has_base: values.has_base })
    }

    fn by_rows(&self) -> bool {
        self.along != Along::All
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Factors, S::Error> {
        Ok(match self.along {
            Along::All => {
                let gram = gram::of_tensor(backend, slabs).await?;
                let gram = if gram.is_empty() { Gram::zeros(3) } else { gram };
                Factors::All(self.coefficients(&gram))
            }
            Along::Rows => Factors::Rows,
            Along::Columns => {
                let elements = slabs.elements();
                // the only axis of a vector is its first and its last
                match slabs.count() > 0 && slabs.slab(0).await?.base.shape().cols == elements {
                    true => Factors::Rows,
                    false => Factors::Columns(self.lines(&gram::of_columns(backend, slabs).await?)),
                }
            }
        })
    }

    async fn apply<B: Backend>(
        &self,
        backend: &B,
        factors: &Factors,
        slab: Slab<B::Tensor>,
    ) -> Result<B::Tensor> {
        match factors {
            Factors::All(sum) => sum.apply(backend, &slab),
            Factors::Rows => {
                let grams = gram::products(backend, &slab.base, &slab.deltas, Along::Rows).await?;
                combine_lines(backend, &slab, &self.lines(&grams), false)
            }
            Factors::Columns(lines) => combine_lines(backend, &slab, lines, true),
        }
    }
}
