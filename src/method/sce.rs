//! SCE: select by variance, calculate weights by energy, erase what disagrees.

use super::elementwise::{Elementwise, Slab, Slabs, narrow};
use super::ranks::{self, Ranked};
use super::table::{Base, Calibration, Description, Kind, Range, Strength, number};
use super::values::Values;
use crate::backend::{Across, Backend, Cut, Divide, Result};

/// `sce`
pub const METHOD: Description = Description {
    name: "sce",
    line: "keeps the elements on which models differ most, weighs models by their energy there and elects signs",
    formula: "the int(count_nonzero(v) select_topk) elements of largest variance v over the d_i are kept (all if select_topk is 1);\n\
              w_i = mean(d_i^2), normalised; the sign of sum d_i is elected; W = b + sum w_i d_i / max(sum w_i, 1e-6) over those\n\
              that agree",
    source: "FuseChat (Wan et al., 2024, arXiv 2408.07990)",
    kind: Kind::Elementwise { passes: 4 },
    models: (1, usize::MAX),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Lambda,
    parameters: &[number(
        "select_topk",
        Range::SHARE,
        1.0,
        "share of the elements that is kept, by variance",
    )],
    example: "select_topk: 0.1",
};

/// SCE of a tensor.
pub struct Sce {
    share: f64,
    lambda: f64,
    models: usize,
}

/// The variance over models.
struct Variance;

impl<B: Backend> Ranked<B> for Variance {
    fn of_slab(&self, backend: &B, slab: &Slab<B::Tensor>) -> Result<Option<B::Tensor>> {
        backend.across(&slab.deltas, Across::Variance).map(Some)
    }
}

impl Sce {
    fn selected<B: Backend>(&self, backend: &B, mut deltas: B::Tensor, cut: Cut) -> Result<B::Tensor> {
        if cut != Cut::END {
            let variance = backend.across(&deltas, Across::Variance)?;
            backend.trim(&mut deltas, Some(&variance), &vec![(cut, Cut::START); self.models])?;
        }
        Ok(deltas)
    }
}

impl Elementwise for Sce {
    /// The cut of variances, and the weights.
    type Learned = (Cut, Vec<f64>);

    fn new(values: &Values) -> std::result::Result<Self, String> {
        let (share, lambda) = (values.number("select_topk"), values.number("lambda"));
        Ok(Sce { share, lambda, models: values.models() })
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<(Cut, Vec<f64>), S::Error> {
        let mut cut = Cut::END;
        if self.share < 1.0 {
            let nonzero = ranks::count_nonzero(backend, slabs, &Variance).await?;
            let k = (nonzero as f64 * self.share) as u64;
            cut = ranks::cuts(backend, slabs, &Variance, &[vec![k]]).await?[0][0];
        }
        let mut energy = vec![0.0; self.models];
        for index in 0..slabs.count() {
            let slab = slabs.slab(index).await?;
            let kept = self.selected(backend, backend.duplicate(&slab.deltas)?, cut.from(slab.first))?;
            let norms = backend.download(&backend.frobenius_norms(&kept)?).await?;
            energy.iter_mut().zip(norms).for_each(|(sum, norm)| *sum += f64::from(norm).powi(2));
        }
        let n = slabs.elements().max(1) as f64;
        let total = energy.iter().sum::<f64>() / n;
        let weight = |energy: &f64| match total.abs() < 1e-6 {
            true => (self.models as f64).recip(),
            false => energy / n / total,
        };
        Ok((cut, energy.iter().map(weight).collect()))
    }

    async fn apply<B: Backend>(
        &self,
        backend: &B,
        (cut, weights): &(Cut, Vec<f64>),
        slab: Slab<B::Tensor>,
    ) -> Result<B::Tensor> {
        let kept = self.selected(backend, slab.deltas, cut.from(slab.first))?;
        let factors = narrow(&[&vec![1.0; self.models][..], weights].concat());
        let sum = backend.across(&kept, Across::Elect { factors: &factors, divide: Divide::BySome })?;
        super::elementwise::scaled(backend, sum, self.lambda)
    }
}
