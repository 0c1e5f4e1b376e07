//! DELLA: drop at random, small differences more often than large ones.

use super::dare::l1_factors;
use super::election::Election;
use super::elementwise::{Elementwise, Slab, Slabs, scale_each};
use super::table::{
    Base, Calibration, DENSITY, Default, Description, Kind, NORMALIZE, Parameter, Range, Strength, WEIGHT,
    of_models, switch,
};
use super::values::{Value, Values};
use crate::backend::{Backend, Chance, Result, Tensor};

/// `della`
pub const METHOD: Description = Description {
    name: "della",
    line: "drops small differences more often than large ones, rescales, elects signs as ties does",
    formula: "in each row the probability of keeping rises linearly with the rank of |d_i|, from density - epsilon to density +\n\
              epsilon; survivors are multiplied so that sum |d_i| is what it was; signs are elected and agreeing weights\n\
              divided by. A vector is one row",
    source: "Deep et al., 2024 (arXiv 2406.11617)",
    kind: Kind::Elementwise { passes: 1 },
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Lambda,
    parameters: &[WEIGHT, DENSITY_GIVEN, EPSILON, RESCALE, NORMALIZED],
    example: "density: 0.5\nepsilon: 0.15",
};

/// `della_linear`
pub const LINEAR: Description = Description {
    name: "della_linear",
    line: "drops small differences more often than large ones, rescales and sums with weights",
    formula: "as della, without an election of signs: W = b + lambda sum w_i d_i",
    parameters: &[WEIGHT, DENSITY_GIVEN, EPSILON, RESCALE, NORMALIZE],
    ..METHOD
};

const DENSITY_GIVEN: Parameter = Parameter { default: Default::Required, ..DENSITY };
const EPSILON: Parameter =
    of_models("epsilon", Range::SHARE, 0.15, "how far probabilities lie from the density");
const RESCALE: Parameter = switch("rescale", true, "keep the sum of magnitudes");
const NORMALIZED: Parameter = Parameter { default: Default::Is(Value::Switch(true)), ..NORMALIZE };

/// DELLA of a tensor, with or without an election of signs.
pub struct Della<const ELECTS: bool> {
    density: Vec<f64>,
    epsilon: Vec<f64>,
    keys: Vec<u64>,
    rescale: bool,
    election: Election,
}

impl<const ELECTS: bool> Della<ELECTS> {
    fn dropped<B: Backend>(&self, backend: &B, mut deltas: B::Tensor, first: usize) -> Result<B::Tensor> {
        let ranks = backend.row_ranks(&deltas)?;
        let alone = deltas.shape().cols == 1;
        let chance = |((&key, &density), &epsilon): ((&u64, &f64), &f64)| {
            let epsilon = if alone { 0.0 } else { epsilon };
            let least = Chance::units(density - epsilon);
            Chance { key, least, span: Chance::units(density + epsilon) - least }
        };
        let chances: Vec<Chance> =
            self.keys.iter().zip(&self.density).zip(&self.epsilon).map(chance).collect();
        backend.drop_out(&mut deltas, Some(&ranks), &chances, first)?;
        Ok(deltas)
    }
}

impl<const ELECTS: bool> Elementwise for Della<ELECTS> {
    type Learned = Vec<f64>;

    fn new(values: &Values) -> std::result::Result<Self, String> {
        let (density, epsilon) = (values.of_models("density"), values.of_models("epsilon"));
        let within = |(&density, &epsilon): (&f64, &f64)| density - epsilon > 0.0 && density + epsilon < 1.0;
        if let Some((d, e)) = density.iter().zip(&epsilon).find(|pair| !within((pair.0, pair.1))) {
            return Err(format!(
                "density - epsilon and density + epsilon must both lie between 0 and 1, but density is {d} and epsilon {e}"
            ));
        }
        let (keys, rescale) = (values.keys.clone(), values.is_on("rescale"));
        Ok(Della { density, epsilon, keys, rescale, election: Election::new(values, ELECTS) })
    }

    fn by_rows(&self) -> bool {
        true
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Vec<f64>, S::Error> {
        if !self.rescale {
            return Ok(vec![1.0; self.density.len()]);
        }
        let drop =
            |slab: &Slab<B::Tensor>| self.dropped(backend, backend.duplicate(&slab.deltas)?, slab.first);
        l1_factors(backend, slabs, self.density.len(), drop).await
    }

    async fn apply<B: Backend>(
        &self,
        backend: &B,
        factors: &Vec<f64>,
        slab: Slab<B::Tensor>,
    ) -> Result<B::Tensor> {
        let mut deltas = self.dropped(backend, slab.deltas, slab.first)?;
        scale_each(backend, &mut deltas, factors)?;
        self.election.of(backend, &deltas)
    }
}
