//! Breadcrumbs: the largest differences are dropped as well as the smallest.

use super::election::Election;
use super::elementwise::{Elementwise, Slab, Slabs};
use super::ranks::{self, Deltas};
use super::table::{
    Base, Calibration, DENSITY, Description, Kind, NORMALIZE, Range, Strength, WEIGHT, of_models,
};
use super::values::Values;
use crate::backend::{Backend, Cut, Result};

/// `breadcrumbs`
pub const METHOD: Description = Description {
    name: "breadcrumbs",
    line: "drops the largest and the smallest differences, then sums with weights",
    formula: "of |d_i| ascending the places [n_bot, n_bot + int(density n)) are kept, n_bot = max(0, n - int(density n) -\n\
              int(gamma n)); W = b + lambda sum w_i d_i",
    source: "Davari and Belilovsky, ECCV 2024 (arXiv 2312.06795)",
    kind: Kind::Elementwise { passes: 2 },
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Lambda,
    parameters: &[
        WEIGHT,
        DENSITY,
        of_models("gamma", Range::SHARE, 0.01, "share of the largest differences that is dropped"),
        NORMALIZE,
    ],
    example: "density: 0.9\ngamma: 0.01",
};

/// `breadcrumbs_ties`
pub const WITH_ELECTION: Description = Description {
    name: "breadcrumbs_ties",
    line: "breadcrumbs, with the sign of each element elected as by ties",
    formula: "as breadcrumbs; of the kept differences those of the elected sign are summed",
    ..METHOD
};

/// Breadcrumbs of a tensor, with or without an election of signs.
pub struct Breadcrumbs<const ELECTS: bool> {
    density: Vec<f64>,
    gamma: Vec<f64>,
    election: Election,
}

impl<const ELECTS: bool> Elementwise for Breadcrumbs<ELECTS> {
    type Learned = Vec<(Cut, Cut)>;

    fn new(values: &Values) -> std::result::Result<Self, String> {
        let (density, gamma) = (values.of_models("density"), values.of_models("gamma"));
        Ok(Breadcrumbs { density, gamma, election: Election::new(values, ELECTS) })
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Vec<(Cut, Cut)>, S::Error> {
        let n = slabs.elements() as u64;
        let places = |(&density, &gamma): (&f64, &f64)| {
            let share = |share: f64| (share * n as f64) as u64;
            let target = if density >= 1.0 { n } else { share(density) };
            let top = if density >= 1.0 { 0 } else { share(gamma).min(n - target) };
            vec![top + target, top]
        };
        let wanted: Vec<Vec<u64>> = self.density.iter().zip(&self.gamma).map(places).collect();
        let cuts = ranks::cuts(backend, slabs, &Deltas, &wanted).await?;
        Ok(cuts.into_iter().map(|cuts| (cuts[0], cuts[1])).collect())
    }

    async fn apply<B: Backend>(
        &self,
        backend: &B,
        cuts: &Vec<(Cut, Cut)>,
        slab: Slab<B::Tensor>,
    ) -> Result<B::Tensor> {
        let cuts = ranks::of_slab(cuts, slab.first);
        self.election.of_trimmed(backend, slab.deltas, &cuts)
    }
}
