//! The named rules by which a tensor is matched, copied or left out (`docs/tensors.md`).

use serde::{Serialize, Serializer};

/// Why a tensor is not simply merged with the tensors of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// All names of an expert differ from the base's by one prefix: `bert.`, `model.`, `_orig_mod.`.
    Prefix,
    /// `LayerNorm.gamma` and `.beta` for `.weight` and `.bias`.
    OlderSpelling,
    /// Input and output embedding are one tensor, which one of the models stores once and the other twice.
    Tied,
    /// The metadata of a file names a shared tensor that is stored under another name.
    Alias,
    /// The matrices of a mixture's experts, which one of the models has together and the other apart, or under older names.
    Mixture,
    /// A head or pooler that one of the models has and the other does not.
    Head,
    /// One of the models is a single tower of the other.
    Tower,
    /// Loaders compute it anew: `inv_freq`, `position_ids`.
    Recomputed,
    /// What training leaves in a file and no model uses: moving averages, counters.
    Training,
    /// A value that cannot be merged as a float (an infinite mask, float64), and need not be: it is the same in all models.
    Identical,
    /// Integers and booleans.
    Integer,
    /// A task vector lacks the tensors that fine-tuning left alone.
    NoDifference,
    /// An adapter leaves the tensors that it has no factors of alone.
    NoFactors,
    /// A module that the recipe leaves to the base.
    Module,
    /// A layer whose low-rank experts hold all that fine-tuning changed.
    Routed,
}

impl Rule {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Prefix => "prefix",
            Rule::OlderSpelling => "older spelling",
            Rule::Tied => "tied",
            Rule::Alias => "alias in the metadata",
            Rule::Mixture => "experts together or apart",
            Rule::Head => "head of another task",
            Rule::Tower => "another tower",
            Rule::Recomputed => "recomputed by loaders",
            Rule::Training => "state of training",
            Rule::Identical => "identical in all models",
            Rule::Integer => "not floating-point",
            Rule::NoDifference => "not in the task vector",
            Rule::NoFactors => "not in the adapter",
            Rule::Module => "a module of the base alone",
            Rule::Routed => "a routed layer, which keeps the pretrained weight",
        }
    }
}

impl Rule {
    /// Whether a tensor that an expert lacks by this rule is there, as it is in the base.
    pub fn leaves_as_is(self) -> bool {
        matches!(self, Rule::NoDifference | Rule::NoFactors)
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
