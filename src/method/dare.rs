//! DARE: drop differences at random and rescale the others.

use super::election::Election;
use super::elementwise::{Elementwise, Slab, Slabs, scale_each};
use super::table::{
    Base, Calibration, DENSITY, Default, Description, Form, Kind, NORMALIZE, Parameter, Strength, WEIGHT,
};
use super::values::{Value, Values};
use crate::backend::{Backend, Chance, MagnitudeSum, Result};

/// `dare_linear`
pub const METHOD: Description = Description {
    name: "dare_linear",
    line: "drops differences at random, rescales the others and sums with weights",
    formula: "each element of d_i is kept with probability density; the survivors are multiplied so that sum |d_i| is what it\n\
              was (rescale: l1, or true), by 1/density (rescale: density, as in the paper), or not (false);\n\
              W = b + lambda sum w_i d_i. Chance depends on seed, tensor, model and element alone",
    source: "Yu et al., ICML 2024 (arXiv 2311.03099)",
    kind: Kind::Elementwise { passes: 1 },
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Lambda,
    parameters: &[WEIGHT, DENSITY, RESCALE, NORMALIZE],
    example: "density: 0.5\nrescale: l1",
};

/// `dare_ties`
pub const WITH_ELECTION: Description = Description {
    name: "dare_ties",
    line: "dare, with the sign of each element elected as by ties",
    formula: "as dare_linear; of the kept differences those of the elected sign are summed",
    ..METHOD
};

const RESCALE: Parameter = Parameter {
    name: "rescale",
    form: Form::Word(&["l1", "density", "true", "false"]),
    default: Default::Is(Value::Word("l1")),
    of_models: false,
    help: "what makes up for what was dropped",
};

/// How what was dropped is made up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rescale {
    /// The sum of magnitudes stays.
    L1,
    /// By the inverse of the density.
    Density,
    /// Not at all.
    Never,
}

impl Rescale {
    /// By the parameter `rescale`.
    pub(super) fn new(values: &Values) -> Rescale {
        match values.get("rescale") {
            Value::Word("density") => Rescale::Density,
            Value::Word("false") | Value::Switch(false) => Rescale::Never,
            _ => Rescale::L1,
        }
    }
}

/// What keeps the sum of magnitudes: `before / after`, 1 where either is as good as zero.
pub fn l1_factor(before: f64, after: f64) -> f64 {
    const NOTHING: f64 = 1e-7;
    if before >= NOTHING && after >= NOTHING { before / after } else { 1.0 }
}

/// The factor of every model's survivors, which `drop` leaves of a slab's differences.
pub(super) async fn l1_factors<B: Backend, S: Slabs<B>>(
    backend: &B,
    slabs: &mut S,
    models: usize,
    drop: impl Fn(&Slab<B::Tensor>) -> Result<B::Tensor>,
) -> std::result::Result<Vec<f64>, S::Error> {
    let mut sums = vec![[MagnitudeSum::zero(), MagnitudeSum::zero()]; models];
    for index in 0..slabs.count() {
        let slab = slabs.slab(index).await?;
        let before = backend.magnitude_sums(&slab.deltas).await?;
        let after = backend.magnitude_sums(&drop(slab)?).await?;
        for ((sums, before), after) in sums.iter_mut().zip(&before).zip(&after) {
            sums[0] += before;
            sums[1] += after;
        }
    }
    Ok(sums.iter().map(|[before, after]| l1_factor(before.total(), after.total())).collect())
}

/// DARE of a tensor, with or without an election of signs.
pub struct Dare<const ELECTS: bool> {
    density: Vec<f64>,
    chances: Vec<Chance>,
    rescale: Rescale,
    election: Election,
}

impl<const ELECTS: bool> Dare<ELECTS> {
    fn dropped<B: Backend>(&self, backend: &B, mut deltas: B::Tensor, first: usize) -> Result<B::Tensor> {
        backend.drop_out(&mut deltas, None, &self.chances, first)?;
        Ok(deltas)
    }

    /// The merged delta of survivors, each model's multiplied by its factor.
    pub fn merge<B: Backend>(&self, backend: &B, mut kept: B::Tensor, factors: &[f64]) -> Result<B::Tensor> {
        scale_each(backend, &mut kept, factors)?;
        self.election.of(backend, &kept)
    }
}

impl<const ELECTS: bool> Elementwise for Dare<ELECTS> {
    type Learned = Vec<f64>;

    fn new(values: &Values) -> std::result::Result<Self, String> {
        let density = values.of_models("density");
        let chance = |(&key, &density): (&u64, &f64)| Chance { key, least: Chance::units(density), span: 0 };
        let chances = values.keys.iter().zip(&density).map(chance).collect();
        let (rescale, election) = (Rescale::new(values), Election::new(values, ELECTS));
        Ok(Dare { density, chances, rescale, election })
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Vec<f64>, S::Error> {
        let whole = self.density.iter().all(|&density| density >= 1.0);
        Ok(match self.rescale {
            Rescale::L1 if !whole => {
                let drop = |slab: &Slab<B::Tensor>| {
                    self.dropped(backend, backend.duplicate(&slab.deltas)?, slab.first)
                };
                l1_factors(backend, slabs, self.density.len(), drop).await?
            }
            Rescale::Density => self
                .density
                .iter()
                .map(|&density| if density > 0.0 { density.recip() } else { 1.0 })
                .collect(),
            Rescale::L1 | Rescale::Never => vec![1.0; self.density.len()],
        })
    }

    async fn apply<B: Backend>(
        &self,
        backend: &B,
        factors: &Vec<f64>,
        slab: Slab<B::Tensor>,
    ) -> Result<B::Tensor> {
        self.merge(backend, self.dropped(backend, slab.deltas, slab.first)?, factors)
    }
}
