//! Arcee Fusion: the important elements of the other model.

use super::elementwise::{Elementwise, Slab, Slabs};
use super::ranks::{self, Ranked};
use super::table::{Base, Calibration, Description, Kind, Strength};
use super::values::Values;
use crate::backend::{Backend, Cut, Result, Shape, Tensor};

/// `arcee_fusion`
pub const METHOD: Description = Description {
    name: "arcee_fusion",
    line: "takes from the other model the elements that matter most, and the base's elsewhere",
    formula: "importance |d| KL(softmax(x) || softmax(b)) along the last axis; the other model's element where that is at least the\n\
              median and 1.5 interquartile ranges. Quantiles are exact, of tensors of any size",
    source: "as mergekit 0.1.5 has it",
    kind: Kind::Elementwise { passes: 2 },
    models: (1, 1),
    base: Base::Origin { listed: true },
    calibration: Calibration::Unused,
    strength: Strength::Alpha,
    parameters: &[],
    example: "alpha: 1",
};

/// Arcee Fusion of a tensor.
pub struct ArceeFusion;

struct Importance;

impl Importance {
    fn of<B: Backend>(backend: &B, slab: &Slab<B::Tensor>) -> Result<B::Tensor> {
        let divergence = backend.row_divergence(&slab.base, &slab.deltas)?;
        let mut importance = backend.duplicate(&slab.deltas)?;
        backend.scale_rows(&mut importance, &divergence)?;
        ranks::as_rows(importance)
    }
}

impl<B: Backend> Ranked<B> for Importance {
    fn of_slab(&self, backend: &B, slab: &Slab<B::Tensor>) -> Result<Option<B::Tensor>> {
        Importance::of(backend, slab).map(Some)
    }
}

impl Elementwise for ArceeFusion {
    /// What importance is kept.
    type Learned = Cut;

    fn new(_: &Values) -> std::result::Result<Self, String> {
        Ok(ArceeFusion)
    }

    fn by_rows(&self) -> bool {
        true
    }

    async fn learn<B: Backend, S: Slabs<B>>(
        &self,
        backend: &B,
        slabs: &mut S,
    ) -> std::result::Result<Cut, S::Error> {
        let n = slabs.elements() as u64;
        if n == 0 {
            return Ok(Cut::END);
        }
        // the element with `place` smaller ones below it is the last of the n - place largest
        let largest = |quantile: f64| n - (quantile * (n - 1) as f64) as u64;
        let wanted = [0.25, 0.5, 0.75].map(largest).to_vec();
        let cuts = ranks::cuts(backend, slabs, &Importance, &[wanted]).await?.remove(0);
        // a cut behind all of them is at the smallest, which a threshold above the median never is
        let [first, median, third] = [0, 1, 2].map(|i| f32::from_bits(cuts[i].bits));
        let threshold = median + 1.5 * (third - first);
        // the numbers at the threshold are kept too
        Ok(Cut { bits: threshold.to_bits(), places: u32::MAX })
    }

    async fn apply<B: Backend>(&self, backend: &B, cut: &Cut, slab: Slab<B::Tensor>) -> Result<B::Tensor> {
        let shape @ Shape { rows, cols, .. } = slab.deltas.shape();
        let importance = Importance::of(backend, &slab)?.reshape(Shape::matrix(rows, cols))?;
        let mut deltas = slab.deltas;
        backend.trim(&mut deltas, Some(&importance), &vec![(*cut, Cut::START); shape.batch])?;
        Ok(deltas)
    }
}
