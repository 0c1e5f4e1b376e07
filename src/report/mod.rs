//! What a run did, or would do: as JSON, as a model card, as a table.

mod card;
mod chart;
mod extracted;
mod figures;
#[cfg(feature = "cli")]
mod grid;
mod inputs;
mod inspection;
mod page;
mod planned;
mod profile;
#[cfg(feature = "cli")]
mod table;

pub use card::{model_card, with_accuracies};
pub use chart::{Chart, Series};
pub use extracted::{Extracted, ExtractedLayer};
pub use figures::{accuracies, figures, likeness, scales};
#[cfg(feature = "cli")]
pub use grid::{Column, Grid, WIDTH, wrapped};
pub use inputs::{Input, InputFile, library};
pub use inspection::{InspectedLayer, Inspection};
pub use page::page;
pub use planned::{Planned, PlannedExperts, PlannedLayer};
pub use profile::{KernelTime, Profile};
#[cfg(feature = "cli")]
pub use table::{short_names, table};

use crate::eval::Probe;
use crate::heads::HeadReport;
use crate::plan::Account;
use indexmap::IndexMap;
use serde::Serialize;

/// Name of the report in an output folder.
pub const FILE: &str = "esmerge-report.json";

/// Name of the picture of every layer's scale in an output folder, which the model card shows.
pub const SCALES: &str = "scales.svg";

/// Name of the picture of every task's accuracy in an output folder, which the model card shows once that is known.
pub const ACCURACIES: &str = "accuracy.svg";

/// A finished run. What is written to the output folder has no times in it, so that the same merge on the same device
/// gives the same bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub esmerge: &'static str,
    /// The method.
    pub merge_method: String,
    /// ESM's preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// The base's name in the Hugging Face hub if it came from there, else the last part of its path.
    pub base_model: String,
    /// Names of the experts.
    pub models: Vec<String>,
    /// The base and the experts: where they lay, and what tells them from others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// What loads the model, as the hub names libraries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library_name: Option<&'static str>,
    /// What computed it.
    pub device: String,
    /// Accuracy against time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<String>,
    /// Seed of random numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Coefficient of the merged deltas.
    pub alpha: f64,
    /// How alpha was found, where it was not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha_search: Option<AlphaSearch>,
    /// What became of the experts' heads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<HeadReport>,
    /// Whether it multiplies ESM's layers or all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha_scope: Option<String>,
    /// Whether ESM had calibration, or took the data-free form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibrated: Option<bool>,
    /// Type of the merged weights; the base's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_dtype: Option<String>,
    /// Folders beside the weights whose own weights were summed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<String>,
    /// What the command line changed in the recipe.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<String>,
    /// How much the GPU was given at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pace: Option<String>,
    /// With `--autotune`: how each class of products was computed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub products: Vec<String>,
    /// Layers of a kind, summed up.
    pub groups: Vec<Group>,
    /// Every layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerReport>,
    /// The adapter that was written, where the output is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterReport>,
    /// The low-rank experts of ESM++.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertsReport>,
    /// What became of every tensor that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
    /// For experts stored in 16 bits: the estimated relative error of their deltas.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub rounding: IndexMap<String, f64>,
    /// What the user should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Wall-clock time of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// What reading, computing and writing took of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<Stages>,
    /// With `--profile`: what the device's time went to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

/// The stages of a run, which overlap: how long each was at work, in seconds, and how much went through it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Stages {
    /// Weights and calibration from their files, looked through for what are no numbers.
    pub reading: Overlap,
    /// The model, and deltas for which memory had no room.
    pub writing: Overlap,
    /// Everything else.
    pub computing: f64,
    /// Bytes that were read before they were asked for.
    pub bytes_read_ahead: u64,
    /// Bytes that were read when they were asked for.
    pub bytes_read_at_once: u64,
    /// Bytes of merged deltas that stayed in memory.
    pub bytes_of_deltas_in_memory: u64,
    /// Bytes of merged deltas that went through a file, or are kept in one.
    pub bytes_of_deltas_on_disk: u64,
}

/// A stage beside the others.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Overlap {
    /// It was at work, ...
    pub seconds: f64,
    /// ... and this long nothing else went on but that it was waited for.
    pub waited: f64,
}

/// A search for alpha.
#[derive(Clone, Debug, Serialize)]
pub struct AlphaSearch {
    /// `accuracy` or `consistency`.
    pub by: &'static str,
    /// What was tried, in order.
    pub probes: Vec<Probe>,
}

impl Default for Report {
    fn default() -> Self {
        Report {
            esmerge: env!("CARGO_PKG_VERSION"),
            merge_method: String::new(),
            preset: None,
            base_model: String::new(),
            models: Vec::new(),
            inputs: Vec::new(),
            library_name: None,
            device: String::new(),
            accuracy: None,
            seed: None,
            alpha: 1.0,
            alpha_search: None,
            heads: Vec::new(),
            alpha_scope: None,
            calibrated: None,
            out_dtype: None,
            modules: Vec::new(),
            overrides: Vec::new(),
            pace: None,
            products: Vec::new(),
            groups: Vec::new(),
            layers: Vec::new(),
            adapter: None,
            experts: None,
            account: None,
            rounding: IndexMap::new(),
            warnings: Vec::new(),
            seconds: None,
            stages: None,
            profile: None,
        }
    }
}

/// One layer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LayerReport {
    /// Its name; for a stack of tensors, the stack's.
    pub name: String,
    /// Its tensors.
    pub tensors: Vec<String>,
    /// `esm`, `tsv_m`, `average`, `task_arithmetic` or `base`.
    pub role: String,
    /// Why it is not the method's main rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether alpha multiplies it.
    pub scaled_by_alpha: bool,
    /// Directions of a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Frobenius norm of the merged delta, before inter-layer scaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<f64>,
    /// Inter-layer scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Share of each task's energy that its directions keep.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub energy_retention: IndexMap<String, f64>,
    /// Inter-task scales.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub task_scale: IndexMap<String, f64>,
    /// Whether a concatenation was rank-deficient.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rank_deficient: bool,
}

/// The low-rank experts of ESM++ and what they cost whoever serves the model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExpertsReport {
    /// Directions of an expert.
    pub rank: usize,
    /// What residuals were taken against: `esm` or `pretrained`.
    pub residual_base: String,
    /// Parameters of one task's experts, `sum r (d_out + d_in)`.
    pub parameters_per_task: usize,
    /// The same over the parameters of the model.
    pub share_of_model: f64,
    /// Values of all prototypes.
    pub routing_values: usize,
    /// Floating-point operations that an expert adds to a token.
    pub flops_per_token: usize,
    /// The routed layers.
    pub layers: Vec<RoutedReport>,
}

impl ExpertsReport {
    /// Over layers and tasks.
    pub fn energy_restored(&self) -> Range {
        let mut range = Range::default();
        self.layers.iter().for_each(|layer| range.extend(layer.energy_restored.values().copied()));
        range
    }
}

/// One routed layer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RoutedReport {
    /// Its name; for a stack of tensors, the stack's.
    pub name: String,
    /// Its weights.
    pub tensors: Vec<String>,
    /// Directions of an expert here.
    pub rank: usize,
    /// The weight whose prototypes route it.
    pub prototypes: String,
    /// Share of the energy of `X_t R_t^T` that each task's expert restores on the proxies.
    pub energy_restored: IndexMap<String, f64>,
}

/// Adapters merged into one.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AdapterReport {
    /// Its rank.
    pub rank: usize,
    /// How it came down to that.
    pub compress: &'static str,
    /// Over layers: the share of what the method made, in squares of norms, that the rank holds.
    pub energy_retention: Range,
}

/// Layers of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Group {
    /// The layers' name with `*` for the block; absent for tensors that are grouped by `reason`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What was done.
    pub role: String,
    /// Why it is not the method's main rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many layers.
    pub layers: usize,
    /// How many tensors.
    pub tensors: usize,
    /// Whether alpha multiplies them.
    pub scaled_by_alpha: bool,
    /// Directions of a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Over layers and tasks.
    #[serde(skip_serializing_if = "Range::is_empty")]
    pub energy_retention: Range,
    /// Over layers and tasks.
    #[serde(skip_serializing_if = "Range::is_empty")]
    pub task_scale: Range,
    /// Over layers.
    #[serde(skip_serializing_if = "Range::is_empty")]
    pub beta: Range,
    /// Layers with a rank-deficient concatenation.
    #[serde(skip_serializing_if = "is_zero")]
    pub rank_deficient: usize,
    /// Time spent on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Smallest, mean and largest of some values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    count: usize,
    sum: f64,
    min: f64,
    max: f64,
}

impl Range {
    /// Whether there were no values.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Smallest, mean and largest.
    pub fn summary(&self) -> Option<[f64; 3]> {
        (self.count > 0).then(|| [self.min, self.sum / self.count as f64, self.max])
    }
}

impl Extend<f64> for Range {
    fn extend<T: IntoIterator<Item = f64>>(&mut self, values: T) {
        for value in values {
            self.min = if self.count == 0 { value } else { self.min.min(value) };
            self.max = if self.count == 0 { value } else { self.max.max(value) };
            self.sum += value;
            self.count += 1;
        }
    }
}

impl Serialize for Range {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [min, mean, max] = self.summary().unwrap_or_default();
        IndexMap::from([("min", min), ("mean", mean), ("max", max)]).serialize(serializer)
    }
}
