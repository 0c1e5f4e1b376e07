//! What an adapter that was extracted holds.

use super::card;
#[cfg(feature = "cli")]
use super::{Column, Grid, Range, short_names, wrapped};
#[cfg(feature = "cli")]
use indexmap::IndexMap;
use serde::Serialize;

/// An adapter of what a model differs from its base by.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Extracted {
    /// The model.
    pub model: String,
    /// Its base.
    pub base_model: String,
    /// Directions of a weight.
    pub rank: usize,
    /// Whether they were chosen by the outputs of the layers, or by the difference alone.
    pub calibrated: bool,
    /// What computed it.
    pub device: String,
    /// Accuracy against time.
    pub accuracy: String,
    /// Seed of random numbers.
    pub seed: u64,
    /// The weights with factors.
    pub layers: Vec<ExtractedLayer>,
    /// Tensors that differ from the base and have no factors, with the norm of the difference.
    pub left_out: Vec<(String, f64)>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// One weight.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExtractedLayer {
    /// Its name.
    pub name: String,
    /// The name with `*` for the block.
    #[serde(skip)]
    pub kind: String,
    /// Directions.
    pub rank: usize,
    /// `||dW||_F`
    pub norm: f64,
    /// The share that the factors hold of what the layer's outputs change by; without calibration of `||dW||_F^2`.
    pub energy_retention: f64,
}

impl Extracted {
    /// The share of all that differs, in squares of norms, that lies in tensors without factors.
    pub fn share_left_out(&self) -> f64 {
        let kept: f64 = self.layers.iter().map(|layer| layer.norm.powi(2)).sum();
        let left: f64 = self.left_out.iter().map(|(_, norm)| norm.powi(2)).sum();
        if left > 0.0 { left / (kept + left) } else { 0.0 }
    }

    /// What is said of tensors without factors; none if they do not differ.
    pub fn loss(&self) -> Option<String> {
        let (first, _) = self.left_out.first()?;
        let n = self.left_out.len();
        let which = if n == 1 {
            format!("`{first}` differs")
        } else {
            format!("{n} tensors such as `{first}` differ")
        };
        Some(format!(
            "{which} from the base and {} no factors: {:.2}% of the squared norm of the difference is left out",
            if n == 1 { "has" } else { "have" },
            100.0 * self.share_left_out()
        ))
    }

    /// A line a kind of layer.
    #[cfg(feature = "cli")]
    pub fn table(&self, width: usize) -> String {
        let mut kinds: IndexMap<&str, (usize, usize, Range)> = IndexMap::new();
        for layer in &self.layers {
            let (n, rank, energy) = kinds.entry(&layer.kind).or_default();
            (*n, *rank) = (*n + 1, (*rank).max(layer.rank));
            energy.extend([layer.energy_retention]);
        }
        let what = match self.calibrated {
            true => "how much of what the model changes in the outputs of these layers the factors hold",
            false => {
                "how much of what the model changes in these weights the factors hold, in squares of norms"
            }
        };
        let mut grid = Grid::new([
            Column::text("layers"),
            Column::number("tensors"),
            Column::number("rank"),
            Column::text("energy kept").meaning(what),
        ]);
        let names = short_names(&kinds.keys().map(|kind| (*kind).to_owned()).collect::<Vec<_>>());
        for ((n, rank, energy), name) in kinds.into_values().zip(names) {
            grid.row(vec![name, n.to_string(), rank.to_string(), card::percent(&energy)]);
        }
        let loss = self.loss().map(|loss| format!("\n\n{}", wrapped(&loss, width))).unwrap_or_default();
        format!("{}{loss}", grid.render(width))
    }

    /// The `README.md` of the adapter.
    pub fn model_card(&self) -> String {
        let by = if self.calibrated { "principal components of the output shift" } else { "truncated SVD" };
        let loss = self.loss().map(|loss| format!("\n{loss}.\n")).unwrap_or_default();
        format!(
            "---\nlibrary_name: peft\n---\n\n# {} as an adapter of {}\n\nRank {} by {by}, extracted with \
             [esmerge](https://crates.io/crates/esmerge) {}; esmerge-report.json says what the factors of each layer hold.\n{loss}",
            card::line(&self.model),
            card::line(&self.base_model),
            self.rank,
            env!("CARGO_PKG_VERSION")
        )
    }
}
