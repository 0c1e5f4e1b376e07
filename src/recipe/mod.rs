//! The recipe: a YAML file that says what to merge and how, as pure data.
//!
//! Keys are mergekit's where mergekit has them. Every field is checked while it is read; an error names the recipe, the
//! line and the path of the key.

mod adapter;
mod cursor;
mod documents;
mod error;
mod heads;
mod mergekit;
mod models;
mod modules;
mod parameters;
mod paths;
mod schema;
mod settings;
mod slices;
mod text;
mod tokenizer;
mod yaml;

pub use documents::Document;
pub use error::Error;
pub use modules::Module;
pub use settings::{Setting, Settings};
pub use slices::{Place, Slice, SliceSource};
pub use tokenizer::{Token, TokenRow, Tokenizer, TokenizerSource};

use crate::backend::Dtype;
use crate::data::Split;
use crate::hub::Missing;
use crate::linalg::Accuracy;
use crate::method::esm_plus::ResidualBase;
use crate::method::head_refit::Heads;
use crate::method::table::Kind;
use crate::method::values::chance_key;
use crate::method::{
    self, AlphaScope, Calibrate, Decomposed, Decomposition, Description, EsmOptions, Preset, Streamed,
    Values, esd,
};
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
    /// The layers of the output, where it is put together of ranges of layers; else none.
    pub slices: Vec<Slice>,
    /// The parts of the model with parameters of their own; none if all are merged alike.
    pub modules: Vec<Module>,
    /// Accuracy against time.
    pub accuracy: Accuracy,
    /// Seed of random numbers.
    pub seed: u64,
    /// Type of the merged weights; the base's, tensor by tensor, if `None`.
    pub out_dtype: Option<Dtype>,
    /// What the output is, where it is an adapter.
    pub adapter: Option<AdapterOut>,
    /// The tokenizer of the output, with the rows of its tokens; the base's as it is if `None`.
    pub tokenizer: Option<Tokenizer>,
    /// What becomes of the experts' heads; nothing is written of them if `None`.
    pub heads: Option<Heads>,
    /// The chat template of the output; the base's if `None`.
    pub chat_template: Option<String>,
    /// Keys of the models' configurations in which experts may differ from the base.
    pub allow_mismatch: Vec<String>,
    /// What a reader of the log should know about how the recipe was understood.
    pub notes: Vec<String>,
    /// Models of the Hugging Face hub that are named and not there; whoever opens them will be told.
    pub missing: Vec<Missing>,
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
    /// Its own parameters of the method.
    pub settings: Settings,
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
    /// Any other method of the table.
    Tabled(Tabled),
}

/// A method of the table with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Tabled {
    /// Which.
    pub description: &'static Description,
    /// Factor of the merged delta, 1 by default.
    pub alpha: Alpha,
    /// Parameters for all models.
    pub settings: Settings,
    /// Whether the recipe names a base.
    pub has_base: bool,
    /// A last step on the merged matrices of layers.
    pub calibrate: Option<Calibrate>,
}

impl Method {
    /// Its line in the table.
    pub fn description(&self) -> &'static Description {
        match self {
            Method::Esm(_) if self.experts().is_some() => &method::esm_plus::METHOD,
            Method::Esm(_) => &method::esm::METHOD,
            Method::Tabled(tabled) => tabled.description,
        }
    }

    /// Its name in a recipe.
    pub fn name(&self) -> &'static str {
        self.description().name
    }

    /// The coefficient of the merged delta.
    pub fn alpha(&self) -> &Alpha {
        match self {
            Method::Esm(esm) => &esm.alpha,
            Method::Tabled(tabled) => &tabled.alpha,
        }
    }

    /// The experts of ESM++; none for any other method.
    pub fn experts(&self) -> Option<&Experts> {
        match self {
            Method::Esm(esm) => esm.experts.as_ref(),
            Method::Tabled(_) => None,
        }
    }

    /// The last step on the merged matrices of layers.
    pub fn calibrate(&self) -> Option<Calibrate> {
        match self {
            Method::Esm(esm) => esm.calibrate,
            Method::Tabled(tabled) => tabled.calibrate,
        }
    }

    /// The method, if it is one of the table's that are not ESM.
    pub fn tabled(&self) -> Option<&Tabled> {
        match self {
            Method::Esm(_) => None,
            Method::Tabled(tabled) => Some(tabled),
        }
    }

    /// The method, if it merges every tensor for itself.
    pub fn elementwise(&self) -> Option<&Tabled> {
        match self {
            Method::Tabled(tabled) if matches!(tabled.description.kind, Kind::Elementwise { .. }) => {
                Some(tabled)
            }
            _ => None,
        }
    }
}

impl Model {
    /// Its weight, where it is the same for all tensors.
    pub fn weight(&self) -> Option<f64> {
        self.settings.get("weight").map_or(Some(1.0), Setting::number)
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
    /// A last step on the merged matrices of layers.
    pub calibrate: Option<Calibrate>,
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
    /// Models that earlier documents of the recipe have made, by name.
    pub made: Vec<(String, PathBuf)>,
}

impl Recipe {
    /// The parameters of a method of the table for a tensor: a source's before its slice's, before the model's, before those for
    /// all.
    pub fn values(&self, tabled: &Tabled, tensor: &str, place: Place) -> Values {
        let mut values = Values::defaults(tabled.description, self.models.len());
        values.has_base = tabled.has_base;
        values.keys = (0..self.models.len()).map(|model| chance_key(self.seed, tensor, model)).collect();
        let (slice, share) = match self.slices.is_empty() {
            true => (None, place.share()),
            false => place.within(&self.slices),
        };
        let module = place.module.and_then(|module| self.modules.get(module));
        let of_module = module.iter().flat_map(|module| &module.settings);
        let of_slice = slice.iter().flat_map(|slice| &slice.settings);
        for (name, setting) in tabled.settings.iter().chain(of_module).chain(of_slice) {
            setting.at(tensor, share).into_iter().for_each(|value| values.set(name, value));
        }
        for (i, model) in self.models.iter().enumerate() {
            let of_source =
                slice.iter().filter_map(|slice| slice.sources.get(i)).flat_map(|source| &source.settings);
            let in_module = module.and_then(|module| module.models.as_ref()?.get(i));
            for (name, setting) in
                model.settings.iter().chain(in_module.into_iter().flatten()).chain(of_source)
            {
                setting.at(tensor, share).into_iter().for_each(|value| values.set_of(i, name, value));
            }
        }
        values
    }

    /// How a tensor is merged element by element: by the method, or where that is of another kind by the average.
    ///
    /// # Errors
    /// Says which parameters do not go together.
    pub fn streamed(&self, values: Option<&Values>) -> Result<Streamed, String> {
        let average = Values::defaults(&method::linear::METHOD, self.models.len());
        let values = values.unwrap_or(&average);
        let found = Streamed::new(values.method(), values)?;
        found.ok_or_else(|| format!("`{}` is no elementwise method", values.method().name))
    }

    /// How the matrices of a layer are merged; none where that is done element by element.
    ///
    /// # Errors
    /// Says which parameters do not go together.
    pub fn decomposed(&self, values: &Values) -> Result<Option<Decomposed>, String> {
        Decomposed::new(values.method(), values)
    }

    /// Reads and checks a recipe.
    pub fn open(path: &Path, overrides: &Overrides) -> Result<Recipe, Error> {
        Recipe::parse(&text::read(path)?, path, overrides)
    }

    /// The documents of a recipe, in order; one if it is not several.
    pub fn documents(path: &Path) -> Result<Vec<Document>, Error> {
        documents::split(&text::read(path)?, path)
    }

    /// Checks the text of a recipe; `path` is where it came from: relative paths in it start there.
    pub fn parse(text: &str, path: &Path, overrides: &Overrides) -> Result<Recipe, Error> {
        schema::recipe(text, path, overrides)
    }
}
