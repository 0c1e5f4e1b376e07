//! What happens to every tensor, decided before any weight is read.
//!
//! [`plan`] is a function of the recipe and the headers of the files it names. Everything that can be wrong with names,
//! shapes and types is found here.

mod account;
mod across;
mod check;
mod cost;
mod error;
mod family;
mod identical;
mod layers;
mod matching;
mod modules;
mod names;
mod quantised;
mod roles;
mod routed;
mod rule;
mod samples;
mod settings;
mod sliced;
mod vocabulary;

pub use account::{Account, ModelAccount};
pub use cost::Cost;
pub use error::Error;
pub use family::{Expert, Family};
pub use layers::plan;
pub use matching::Matching;
pub(crate) use names::is_task_part;
pub use names::{is_of_expert, kind_of_layer};
pub use roles::Role;
pub use routed::{Experts, Routed};
pub use rule::Rule;
pub use samples::{AlphaSearch, SearchSamples, expert_source, head_data, read_proxies};
pub use settings::Settings;
pub use vocabulary::Tokens;

use crate::recipe::{Place, Recipe};
use names::block_index;
use serde::Serialize;
use std::collections::HashMap;

/// Values of a tensor that are summed at a time: the memory of an embedding of any size stays at this.
pub const SUM_CHUNK: usize = 4 << 20;

/// What happens to every tensor of the base.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The layers, in the order of the base's files.
    pub layers: Vec<Layer>,
    /// The low-rank experts of ESM++.
    pub experts: Option<Experts>,
    /// What merging element by element is called, for [`Role::Sum`]: the method's name, or `average`.
    pub sum: &'static str,
    /// What the method for matrices of layers is called, for [`Role::Spectral`].
    pub spectral: &'static str,
    /// Where the base's layers are: parameters may differ from one to the next.
    places: Places,
    /// Factor of the merged deltas where `scaled` says so; 1 until a search has found another.
    pub alpha: f64,
    /// The search for it.
    pub search: Option<AlphaSearch>,
    /// Whether layers are merged by what those before them have become: in the order of blocks, and all of them before the first is
    /// written.
    pub by_blocks: bool,
    /// What becomes of every tensor that is read.
    pub account: Account,
    /// What the user should know before the merge starts.
    pub warnings: Vec<String>,
}

/// One or several tensors that are merged as one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The tensor's name; for several, a name for their stack.
    pub name: String,
    /// The tensors, stacked in this order.
    pub parts: Vec<Part>,
    /// Rows of the stack; 1 for a [`Role::Sum`], which sees a row of values.
    pub d_out: usize,
    /// Its columns.
    pub d_in: usize,
    /// Whether its tensor is stored as `d_in x d_out` (GPT-2's `Conv1D`).
    pub transposed: bool,
    /// What is done.
    pub role: Role,
    /// Directions of a task where it is decomposed.
    pub rank: usize,
    /// The layers it is compared with in inter-layer scaling.
    pub group: Option<String>,
    /// Whether alpha multiplies it.
    pub scaled: bool,
    /// Whether TSV-M multiplies by the mean singular values.
    pub mean_sigma: bool,
    /// Why it is not merged by the method's main rule, if it is not.
    pub reason: Option<&'static str>,
    /// The rule by which it is the base's ([`Role::Base`], [`Role::Pretrained`]).
    pub kept: Option<Rule>,
    /// What it costs.
    pub cost: Cost,
}

/// One tensor of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its rows in the stack.
    #[serde(skip)]
    pub rows: usize,
}

impl Plan {
    /// What is done with a layer, in a word.
    pub fn treatment(&self, layer: &Layer) -> &'static str {
        match layer.role {
            Role::Sum => self.sum,
            Role::Spectral => self.spectral,
            role => role.name(),
        }
    }
}

impl Plan {
    /// The same with another factor of the merged deltas.
    pub fn with_alpha(&self, alpha: f64) -> Plan {
        Plan { alpha, ..self.clone() }
    }

    /// Whether every merged delta is put aside before the first weight is written; `kept` if the user keeps them.
    pub fn puts_all_aside(&self, kept: bool) -> bool {
        kept || self.search.is_some() || self.by_blocks
    }

    /// Which layer a tensor is of.
    pub fn place(&self, tensor: &str) -> Place {
        self.places.of(tensor)
    }
}

/// Where the layers of a model are.
#[derive(Clone, Debug, PartialEq)]
struct Places {
    /// How many follow each other, by what comes before their number in the names.
    stacks: HashMap<String, usize>,
    modules: Option<modules::Modules>,
}

impl Places {
    fn new(recipe: &Recipe, family: &Family) -> Result<Places, Error> {
        let mut stacks = HashMap::new();
        for name in family.base.names() {
            if let (Some((before, ..)), Some(index)) = (names::block(name), block_index(name)) {
                let layers = stacks.entry(before.to_owned()).or_insert(0);
                *layers = (index + 1).max(*layers);
            }
        }
        Ok(Places { stacks, modules: modules::Modules::of(recipe, family)? })
    }

    fn of(&self, tensor: &str) -> Place {
        let layers = names::block(tensor).and_then(|(before, ..)| self.stacks.get(before).copied());
        Place {
            layer: block_index(tensor),
            layers: layers.unwrap_or(0),
            before: names::comes_first(tensor),
            module: self.modules.as_ref().and_then(|modules| modules.place(tensor)),
        }
    }
}

impl Part {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Layer {
    /// The name with its block index replaced by `*`: the same for the same kind of layer in every block.
    pub fn kind(&self) -> String {
        names::kind_of_layer(&self.name)
    }

    /// Whether it is of an expert in a mixture, which sees only the tokens that are sent to it.
    pub fn is_of_expert(&self) -> bool {
        self.parts.iter().any(|part| is_of_expert(&part.name))
    }

    /// The index of its block, if it is in one.
    pub fn block(&self) -> Option<usize> {
        names::block_index(&self.name)
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        self.parts.iter().map(Part::elements).sum()
    }
}
