//! The recipe: a YAML file that says what to merge and how, as pure data.
//!
//! Keys are mergekit's where mergekit has them. Every field is checked while it is read; an error names the recipe, the
//! line and the path of the key.

mod adapter;
mod cursor;
mod error;
mod mergekit;
mod models;
mod parameters;
mod schema;
mod text;
mod yaml;

pub use error::Error;

use crate::backend::Dtype;
use crate::data::Split;
use crate::linalg::Accuracy;
use crate::method::esm_plus::ResidualBase;
use crate::method::{AlphaScope, Decomposition, EsmOptions, Preset, esd};
use std::path::{Path, PathBuf};

/// A recipe, complete and checked; paths are relative to nothing but the working directory any more.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The file it came from.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// How to merge.
    pub method: Method,
    /// The model all experts were fine-tuned from.
    pub base_model: PathBuf,
    /// The experts, in order.
    pub models: Vec<Model>,
    /// Accuracy against time.
    pub accuracy: Accuracy,
    /// Seed of random numbers.
    pub seed: u64,
    /// Type of the merged weights; the base's, tensor by tensor, if `None`.
    pub out_dtype: Option<Dtype>,
    /// What the output is, where it is an adapter.
    pub adapter: Option<AdapterOut>,
    /// Keys of the models' configurations in which experts may differ from the base.
    pub allow_mismatch: Vec<String>,
    /// What a reader of the log should know about how the recipe was understood.
    pub notes: Vec<String>,
}

/// `out: lora`: the merged adapters as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterOut {
    /// Directions of each weight.
    pub rank: usize,
    /// How it comes down to that rank.
    pub compress: Compress,
}

/// How merged adapters come down to the rank of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compress {
    /// The best approximation of what the method makes of the adapters as they are.
    #[default]
    Truncate,
    /// Compress-then-Merge: the adapters are brought into shared subspaces of that rank, and merged there.
    Ctm,
}

impl Compress {
    /// All of them, by the names that recipes use.
    pub const NAMES: [(&'static str, Compress); 2] =
        [("truncate", Compress::Truncate), ("ctm", Compress::Ctm)];

    /// Its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Compress::Truncate => "truncate",
            Compress::Ctm => "ctm",
        }
    }
}

/// An expert.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Names it in reports; unique.
    pub name: String,
    /// Where its weights are.
    pub source: Source,
    /// Its coefficient in `linear` and `task_arithmetic`.
    pub weight: f64,
    /// What is known of the inputs of its layers.
    pub calibration: Calibration,
    /// A task file, for alpha search and evaluation.
    pub task: Option<PathBuf>,
}

/// Where an expert's weights are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder or a file with all weights.
    Checkpoint(PathBuf),
    /// A task vector: what to add to the base.
    Delta(PathBuf),
    /// A low-rank adapter.
    Adapter {
        /// The model it is added to; the base if `None`.
        model: Option<PathBuf>,
        /// The adapter.
        adapter: PathBuf,
    },
}

impl Source {
    /// The path of what makes the expert differ from others.
    pub fn path(&self) -> &Path {
        match self {
            Source::Checkpoint(path) | Source::Delta(path) | Source::Adapter { adapter: path, .. } => path,
        }
    }
}

/// The `calibration` of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Calibration {
    /// Not said. Fine for methods that need none.
    Unset,
    /// `none`: the data-free form.
    None,
    /// A file.
    File(PathBuf),
    /// Samples to run the expert on.
    Data(Proxies),
}

/// Samples for calibration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Proxies {
    /// A folder or file.
    pub data: PathBuf,
    /// How many of its samples.
    pub samples: usize,
    /// Cuts texts to this many tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
}

/// How to merge.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// Essential Subspace Merging, alone or with the low-rank experts of ESM++.
    Esm(Box<Esm>),
    /// `W0 + alpha sum c_t dW_t / sum c`, without the division if not `normalize`.
    Linear {
        /// Factor of the merged delta, 1 by default.
        alpha: Alpha,
        /// Whether the weights are divided by their sum.
        normalize: bool,
    },
    /// `W0 + alpha sum c_t dW_t`, the weights divided by their sum if `normalize`.
    TaskArithmetic {
        /// Lambda, 1 by default.
        alpha: Alpha,
        /// Whether the weights are divided by their sum.
        normalize: bool,
    },
    /// TSV-M on matrices, the average elsewhere.
    TsvM {
        /// Factor of the merged delta, 1 by default.
        alpha: Alpha,
    },
}

/// The methods by name.
pub const METHODS: [&str; 5] = ["esm", "esm++", "linear", "task_arithmetic", "tsv_m"];

impl Method {
    /// Its name in a recipe.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Esm(_) if self.experts().is_some() => "esm++",
            Method::Esm(_) => "esm",
            Method::Linear { .. } => "linear",
            Method::TaskArithmetic { .. } => "task_arithmetic",
            Method::TsvM { .. } => "tsv_m",
        }
    }

    /// The coefficient of the merged delta.
    pub fn alpha(&self) -> &Alpha {
        match self {
            Method::Esm(esm) => &esm.alpha,
            Method::Linear { alpha, .. } | Method::TaskArithmetic { alpha, .. } | Method::TsvM { alpha } => {
                alpha
            }
        }
    }

    /// The experts of ESM++; none for any other method.
    pub fn experts(&self) -> Option<&Experts> {
        match self {
            Method::Esm(esm) => esm.experts.as_ref(),
            _ => None,
        }
    }
}

/// Essential Subspace Merging with all its switches.
#[derive(Clone, Debug, PartialEq)]
pub struct Esm {
    /// Where the switches start from.
    pub preset: Preset,
    /// The switches.
    pub options: EsmOptions,
    /// The coefficient of the merged delta.
    pub alpha: Alpha,
    /// Which tensors alpha multiplies.
    pub alpha_scope: AlphaScope,
    /// Directions of a task.
    pub rank: Rank,
    /// Whether q, k and v are merged as one matrix; by architecture if `None`.
    pub fuse_qkv: Option<bool>,
    /// Patterns of the names of ESM's tensors; by architecture if `None`.
    pub layers: Option<Vec<String>>,
    /// What ESM++ adds.
    pub experts: Option<Experts>,
}

/// The low-rank experts of ESM++.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// Directions of an expert.
    pub rank: usize,
    /// What residuals are taken against.
    pub residual_base: ResidualBase,
    /// Where the directions of an expert come from.
    pub decomposition: Decomposition,
    /// Patterns of the names of the routed layers' weights; by architecture if `None`.
    pub routed_layers: Option<Vec<String>>,
}

/// The coefficient of the merged delta.
#[derive(Clone, Debug, PartialEq)]
pub enum Alpha {
    /// Given.
    Number(f64),
    /// To be found by the best accuracy or consistency on task files.
    Search {
        /// What is maximised.
        by: Search,
        /// Which labelled samples; a task's `val` split if `None`.
        split: Option<Split>,
    },
}

/// What an alpha search maximises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Accuracy on the validation split.
    Accuracy,
    /// Agreement with the experts' features.
    Consistency,
}

impl Search {
    /// Its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Search::Accuracy => "accuracy",
            Search::Consistency => "consistency",
        }
    }
}

/// How many directions each task gets in a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rank {
    /// `floor(d_out / T)`
    Auto,
    /// The same for every layer.
    Directions(usize),
    /// A fraction of `d_out`.
    Fraction(f64),
}

impl Rank {
    /// `r` of a layer with `d_out` outputs, at least 1 and at most `d_out`.
    pub fn of(self, d_out: usize, tasks: usize) -> usize {
        let rank = match self {
            Rank::Auto => esd::rank_budget(d_out, tasks),
            Rank::Directions(r) => r,
            Rank::Fraction(f) => (d_out as f64 * f) as usize,
        };
        rank.clamp(1, d_out.max(1))
    }
}

/// What flags of the command line put in place of the recipe's values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// `--alpha`
    pub alpha: Option<f64>,
    /// `--accuracy`
    pub accuracy: Option<Accuracy>,
    /// `--seed`
    pub seed: Option<u64>,
    /// `--allow-mismatch`
    pub allow_mismatch: Vec<String>,
}

impl Recipe {
    /// Reads and checks a recipe.
    pub fn open(path: &Path, overrides: &Overrides) -> Result<Recipe, Error> {
        Recipe::parse(&text::read(path)?, path, overrides)
    }

    /// Checks the text of a recipe; `path` is where it came from: relative paths in it start there.
    pub fn parse(text: &str, path: &Path, overrides: &Overrides) -> Result<Recipe, Error> {
        schema::recipe(text, path, overrides)
    }
}
