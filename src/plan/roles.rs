//! Which rule a tensor falls under. Roles follow from the architecture, the preset and the recipe's `layers`, never from
//! which calibration happens to exist.

use super::names::{VitWeight, block, is_head, is_vocabulary, vit_weight};
use crate::checkpoint::{Kind, TensorMeta, kind};
use crate::method::Preset;
use crate::method::esm_plus::ResidualBase;
use crate::recipe::{Esm, Method};
use wildmatch::WildMatch;

/// What is done with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Essential Subspace Merging.
    Esm,
    /// Task Singular Vectors merging.
    TsvM,
    /// The weighted sum of the deltas: the average, or task arithmetic.
    Sum,
    /// The base's tensor, byte for byte.
    Base,
    /// The base's values in the output's type: a routed layer whose experts hold all that fine-tuning changed.
    Pretrained,
    /// Low-rank experts beside a weight that is merged by another role.
    Experts,
}

impl Role {
    /// Its name in reports and delta files.
    pub fn name(self) -> &'static str {
        match self {
            Role::Esm => "esm",
            Role::TsvM => "tsv_m",
            Role::Sum => "sum",
            Role::Base => "base",
            Role::Pretrained => "pretrained",
            Role::Experts => "experts",
        }
    }
}

/// Families of architectures that the rules tell apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    /// CLIP-like vision transformers. In a model with two towers, only names with this part are the vision tower.
    Vit { tower: Option<&'static str> },
    /// Everything else: ESM on every linear weight of a block.
    Blocks,
}

/// Transformers whose names are known to follow the rule for blocks; others follow it with a warning.
const KNOWN_BLOCKS: [&str; 22] = [
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "mpnet",
    "deberta",
    "deberta-v2",
    "modernbert",
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "t5",
    "opt",
    "gpt_neox",
];

/// Models whose linear weights are stored as `d_in x d_out`.
const TRANSPOSED: [&str; 2] = ["gpt2", "openai-gpt"];

impl Architecture {
    /// By `model_type`, else by the names of the tensors. The second value says what could not be told.
    pub(super) fn of<'a>(
        model_type: Option<&str>,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> (Architecture, Option<String>) {
        let has = |part: &str| names.clone().any(|n| block(n).is_some() && has_part(n, part));
        let tower = ["vision_model", "visual"].into_iter().find(|part| has(part));
        let clip = model_type.is_some_and(|t| t.starts_with("clip") || t == "vit");
        if clip || (model_type.is_none() && tower.is_some()) {
            return (Architecture::Vit { tower }, None);
        }
        let note = match model_type {
            Some(known) if KNOWN_BLOCKS.contains(&known) => None,
            Some(other) => Some(format!("the architecture `{other}` is not known by name")),
            None => Some("the base has no config.json with a model_type".to_owned()),
        };
        (Architecture::Blocks, note)
    }
}

/// Whether a model type stores its linear weights transposed.
pub(super) fn is_transposed(model_type: Option<&str>) -> bool {
    model_type.is_some_and(|t| TRANSPOSED.contains(&t))
}

/// The rules of one recipe on one architecture.
pub(super) struct Rules<'a> {
    method: &'a Method,
    architecture: &'a Architecture,
    patterns: Option<Vec<WildMatch>>,
    routed_patterns: Option<Vec<WildMatch>>,
}

/// A role, and why it is not ESM's where it might have been.
pub(super) type Ruling = (Role, Option<&'static str>);

impl<'a> Rules<'a> {
    pub(super) fn new(method: &'a Method, architecture: &'a Architecture) -> Rules<'a> {
        let patterns = match method {
            Method::Esm(esm) => esm.layers.as_ref(),
            _ => None,
        };
        let routed = method.experts().and_then(|e| e.routed_layers.as_ref());
        let compile = |p: &Vec<String>| p.iter().map(|p| WildMatch::new(p)).collect();
        Rules { method, architecture, patterns: patterns.map(compile), routed_patterns: routed.map(compile) }
    }

    /// The role of a tensor.
    pub(super) fn of(&self, name: &str, meta: &TensorMeta) -> Ruling {
        if kind(meta.dtype) == Kind::Integer {
            return (Role::Base, Some("not floating-point"));
        }
        if self.is_routed(name, meta)
            && self.method.experts().is_some_and(|e| e.residual_base == ResidualBase::Pretrained)
        {
            return (Role::Pretrained, Some("a routed layer, which keeps the pretrained weight"));
        }
        match self.method {
            Method::Linear { .. } | Method::TaskArithmetic { .. } => (Role::Sum, None),
            Method::TsvM { .. } => not_a_matrix(name, meta).unwrap_or((Role::TsvM, None)),
            Method::Esm(esm) if self.is_esm(name, meta, esm) => (Role::Esm, None),
            Method::Esm(esm) => not_a_matrix(name, meta).unwrap_or_else(|| other_matrix(esm.preset)),
        }
    }

    /// Whether a weight gets low-rank experts: the paper's choice is qkv and fc1 of a vision transformer, elsewhere every
    /// linear weight of a block.
    pub(super) fn is_routed(&self, name: &str, meta: &TensorMeta) -> bool {
        if self.method.experts().is_none() || !is_weight(meta) {
            return false;
        }
        if let Some(patterns) = &self.routed_patterns {
            return patterns.iter().any(|p| p.matches(name));
        }
        !matches!(self.linear_of_block(name), None | Some(BlockWeight::Vit(VitWeight::Fc2)))
    }

    fn is_esm(&self, name: &str, meta: &TensorMeta, esm: &Esm) -> bool {
        if !is_weight(meta) {
            return false;
        }
        if let Some(patterns) = &self.patterns {
            return patterns.iter().any(|p| p.matches(name));
        }
        match self.linear_of_block(name) {
            Some(BlockWeight::Vit(VitWeight::Fc2)) => esm.preset != Preset::EsmPaper,
            found => found.is_some(),
        }
    }

    /// The linear weight of a block that the architecture's rule sees in a name.
    fn linear_of_block(&self, name: &str) -> Option<BlockWeight> {
        let (_, _, after) = block(name)?;
        match self.architecture {
            Architecture::Vit { tower } if tower.is_some_and(|part| !has_part(name, part)) => None,
            Architecture::Vit { .. } => vit_weight(after).map(BlockWeight::Vit),
            Architecture::Blocks => (!is_vocabulary(name)).then_some(BlockWeight::Any),
        }
    }
}

/// A linear weight of a block.
enum BlockWeight {
    Vit(VitWeight),
    /// Where the rules make no difference between them.
    Any,
}

/// A matrix of numbers.
fn is_weight(meta: &TensorMeta) -> bool {
    meta.float().is_some() && meta.matrix().is_some_and(|(rows, cols)| rows > 0 && cols > 0)
}

/// Tensors that no decomposition applies to are averaged.
fn not_a_matrix(name: &str, meta: &TensorMeta) -> Option<Ruling> {
    let average = |why| Some((Role::Sum, Some(why)));
    match meta.shape.len() {
        0 | 1 => average("one-dimensional"),
        2 if meta.elements() == 0 => average("empty"),
        2 if is_vocabulary(name) => average("vocabulary embedding"),
        2 if is_head(name) => average("head"),
        2 => None,
        _ => average("three or more dimensions"),
    }
}

/// Matrices that are not ESM's.
fn other_matrix(preset: Preset) -> Ruling {
    match preset {
        Preset::EsmPaper => (Role::Sum, Some("a matrix that esm-paper averages")),
        _ => (Role::TsvM, Some("a matrix that is not among ESM's layers")),
    }
}

fn has_part(name: &str, part: &str) -> bool {
    name.split('.').any(|p| p == part)
}
