//! TIES: trim, elect signs, merge what agrees.

use super::election::Election;
use super::elementwise::{Elementwise, Slab, Slabs, scaled};
use super::ranks::{self, Deltas};
use super::table::{
    Base, Calibration, DENSITY, Description, Kind, NORMALIZE, Parameter, Strength, WEIGHT, word,
};
use super::values::{Value, Values};
use crate::backend::{Across, Backend, Cut, Divide, Error, Result};
use serde::{Deserialize, Serialize};
use std::rc::Rc;

/// `ties`
pub const METHOD: Description = Description {
    name: "ties",
    line: "keeps the largest differences, elects a sign for each element and averages what agrees",
    formula: "d_i trimmed to its max(1, int(density n)) largest magnitudes; sign s = + where sum w_i d_i >= 0, else -;\n\
              W = b + lambda sum_{sign(w_i d_i) = s} w_i d_i / sum_{same} w_i\n\
              scope: model takes one threshold for all tensors of a model, as the paper does: a zero vote takes the sign\n\
              of the sum of all votes, and agreeing entries that are not zero are averaged without weights",
    source: "Yadav et al., NeurIPS 2023 (arXiv 2306.01708)",
    kind: Kind::Elementwise { passes: 2 },
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Lambda,
    parameters: &[
        WEIGHT,
        DENSITY,
        Parameter { default: super::table::Default::Is(Value::Switch(true)), ..NORMALIZE },
        word(
            "scope",
            &["tensor", "model"],
            "whether magnitudes are ranked in each tensor or in all of the model",
        ),
    ],
    example: "density: 0.2\nlambda: 1.0",
};

/// TIES of a tensor.
pub struct Ties {
    density: Vec<f64>,
    election: Election,
    normalize: bool,
    lambda: f64,
    by_model: bool,
    of_model: Option<Rc<OfModel>>,
}

/// What `scope: model` takes from all tensors together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfModel {
    /// Each model's threshold.
    cuts: Vec<(Cut, Cut)>,
    /// Which sign a zero vote elects: that of the sum of all votes.
    zero_is_positive: bool,
}

impl OfModel {
    /// Looks at all tensors, of which `slabs` are one after the other, as rows. The threshold of a model is the (n-k)-th smallest
    /// magnitude with `k = int(density n)`; what equals it is kept.
    pub async fn learn<B: Backend, S: Slabs<B>>(
        backend: &B,
        slabs: &mut S,
        density: &[f64],
    ) -> std::result::Result<OfModel, S::Error> {
        let n = slabs.elements() as u64;
        let wanted: Vec<Vec<u64>> =
            density.iter().map(|d| vec![((d * n as f64) as u64 + 1).min(n)]).collect();
        let cuts = ranks::cuts(backend, slabs, &Deltas, &wanted).await?;
        let with_equals = |cut: Cut| (Cut { places: u32::MAX, ..cut }, Cut::START);
        let cuts: Vec<(Cut, Cut)> = cuts.into_iter().map(|cuts| with_equals(cuts[0])).collect();
        let mut sum = 0.0;
        let (plus, minus) = (vec![1.0; density.len()], vec![-1.0; density.len()]);
        for index in 0..slabs.count() {
            let slab = slabs.slab(index).await?;
            let mut kept = backend.duplicate(&slab.deltas)?;
            backend.trim(&mut kept, None, &cuts)?;
            for (votes, sign) in [(&plus, 1.0), (&minus, -1.0)] {
                let ones = backend.across(&kept, Across::Positive(votes))?;
                let counted = backend.download(&backend.inner_products(&ones, &ones)?).await?;
                sum += sign * counted.iter().map(|&count| f64::from(count)).sum::<f64>();
            }
        }
        Ok(OfModel { cuts, zero_is_positive: sum > 0.0 })
    }
}

/// How many numbers of `elements` a density keeps: none, some, or all.
pub(super) fn kept(density: f64, elements: usize) -> u64 {
    match density {
        d if d >= 1.0 => elements as u64,
        d if d <= 0.0 => 0,
        d => ((d * elements as f64) as u64).max(1),
    }
}

impl Elementwise for Ties {
    type Learned = Vec<(Cut, Cut)>;

    fn new(values: &Values) -> std::result::Result<Self, String> {
        Ok(Ties {
            density: values.of_models("density"),
            election: Election::new(values, true),
            normalize: values.is_on("normalize"),
            lambda: values.number("lambda"),
            by_model: values.word("scope") == "model",
            of_model: values.of_model.clone(),
        })
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Vec<(Cut, Cut)>, S::Error> {
        if let Some(of_model) = &self.of_model {
            return Ok(of_model.cuts.clone());
        }
        if self.by_model {
            let why = "`scope: model` without a look at all tensors";
            return Err(Error::Internal(why.to_owned()).into());
        }
        let n = slabs.elements();
        let wanted: Vec<Vec<u64>> = self.density.iter().map(|&density| vec![kept(density, n)]).collect();
        let cuts = ranks::cuts(backend, slabs, &Deltas, &wanted).await?;
        Ok(cuts.into_iter().map(|cuts| (cuts[0], Cut::START)).collect())
    }

    async fn apply<B: Backend>(
        &self,
        backend: &B,
        cuts: &Vec<(Cut, Cut)>,
        slab: Slab<B::Tensor>,
    ) -> Result<B::Tensor> {
        let cuts = ranks::of_slab(cuts, slab.first);
        let Some(of_model) = &self.of_model else {
            return self.election.of_trimmed(backend, slab.deltas, &cuts);
        };
        let vote = if of_model.zero_is_positive { 1.0 } else { -1.0 };
        let models = self.density.len();
        let factors = [vec![vote; models], vec![1.0; models]].concat();
        let divide = if self.normalize { Divide::UnlessZero } else { Divide::Never };
        let sum = backend.across_trimmed(slab.deltas, &cuts, Across::Elect { factors: &factors, divide })?;
        scaled(backend, sum, self.lambda)
    }
}
