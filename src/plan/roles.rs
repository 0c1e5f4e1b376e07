//! Which rule a tensor falls under. Roles follow from the architecture, the preset and the recipe's `layers`, never from
//! which calibration happens to exist.

use super::names::{
    VitWeight, block, is_head, is_layer_weight, is_of_expert, is_recomputed, is_router_gate, is_vocabulary,
    vit_weight,
};
use super::rule::Rule;
use super::{Family, Places};
use crate::checkpoint::{self, TensorMeta, kind, slice_of};
use crate::method::esm_plus::ResidualBase;
use crate::method::table::Kind;
use crate::method::{Preset, tsv};
use crate::recipe::{Esm, Method, Module, Recipe};
use indexmap::IndexMap;
use std::collections::HashSet;
use wildmatch::WildMatch;

/// What is done with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Essential Subspace Merging.
    Esm,
    /// Task Singular Vectors merging.
    TsvM,
    /// Another method for matrices of layers, or an elementwise one with a last step on matrices.
    Spectral,
    /// The weighted sum of the deltas: the average, or task arithmetic.
    Sum,
    /// The base's tensor, byte for byte.
    Base,
    /// The base's values in the output's type: a part that no expert has, or a routed layer whose low-rank experts hold all that
    /// fine-tuning changed.
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
            Role::Spectral => "spectral",
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
    /// Everything else: ESM on every linear weight of a block; of a model with an encoder and a decoder where only the encoder's
    /// inputs can be known, on those of names with this part.
    Blocks { part: Option<&'static str> },
}

/// Transformers whose names are known to follow the rule for blocks; others follow it with a warning.
const KNOWN_BLOCKS: [&str; 27] = [
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
    "qwen3_moe",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "phi",
    "phi3",
    "t5",
    "mt5",
    "opt",
    "gpt2",
    "openai-gpt",
    "gpt_neox",
];

impl Architecture {
    /// By `model_type`, else by the names of the tensors. The second value says what could not be told.
    pub(super) fn of<'a>(
        model_type: Option<&str>,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> (Architecture, Option<String>) {
        let has = |part: &str| names.clone().any(|n| block(n).is_some() && has_part(n, part));
        let tower = ["vision_model", "visual"].into_iter().find(|part| has(part));
        let vision = ["clip", "clip_vision_model", "siglip", "siglip_vision_model", "vit", "dinov2"];
        let clip = model_type.is_some_and(|t| t.starts_with("clip") || vision.contains(&t));
        if clip || (model_type.is_none() && tower.is_some()) {
            return (Architecture::Vit { tower }, None);
        }
        let note = match model_type {
            Some(known) if KNOWN_BLOCKS.contains(&known) => None,
            Some(other) => Some(format!("the architecture `{other}` is not known by name")),
            None => Some("the base has no config.json with a model_type".to_owned()),
        };
        let t5 = model_type.is_some_and(|t| ["t5", "mt5"].contains(&t));
        (Architecture::Blocks { part: t5.then_some("encoder") }, note)
    }
}

/// The rules of one recipe on one family.
pub(super) struct Rules<'a> {
    method: &'a Method,
    architecture: &'a Architecture,
    patterns: Option<Vec<WildMatch>>,
    routed_patterns: Option<Vec<WildMatch>>,
    /// Rows of the vocabulary, where the configuration says.
    vocabulary: Option<usize>,
    /// Gates of mixtures.
    gates: HashSet<&'a str>,
    /// Tensors that no expert has; why.
    lacking: IndexMap<&'a str, Rule>,
    /// Tensors that are copied because they are the same everywhere.
    identical: HashSet<String>,
    modules: &'a [Module],
    places: &'a Places,
}

/// A role, why it is not the method's main one, and by which rule the base's values are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ruling {
    pub role: Role,
    pub reason: Option<&'static str>,
    pub kept: Option<Rule>,
}

impl Ruling {
    pub(super) fn plain(role: Role) -> Ruling {
        Ruling { role, reason: None, kept: None }
    }

    fn because(role: Role, reason: &'static str) -> Ruling {
        Ruling { role, reason: Some(reason), kept: None }
    }

    fn kept(role: Role, rule: Rule) -> Ruling {
        Ruling { role, reason: Some(rule.name()), kept: Some(rule) }
    }
}

impl<'a> Rules<'a> {
    pub(super) fn new(
        recipe: &'a Recipe,
        architecture: &'a Architecture,
        family: &'a Family,
        (identical, places): (HashSet<String>, &'a Places),
    ) -> Rules<'a> {
        let method = &recipe.method;
        let patterns = match method {
            Method::Esm(esm) => esm.layers.as_ref(),
            _ => None,
        };
        let routed = method.experts().and_then(|e| e.routed_layers.as_ref());
        let compile = |p: &Vec<String>| p.iter().map(|p| WildMatch::new(p)).collect();
        Rules {
            method,
            architecture,
            patterns: patterns.map(compile),
            routed_patterns: routed.map(compile),
            vocabulary: family.settings.vocabulary(),
            gates: gates(family),
            lacking: lacking_everywhere(family),
            identical,
            modules: &recipe.modules,
            places,
        }
    }

    /// The role of a tensor.
    pub(super) fn of(&self, name: &str, meta: &TensorMeta) -> Ruling {
        if kind(meta.dtype) == checkpoint::Kind::Integer {
            return Ruling::kept(Role::Base, Rule::Integer);
        }
        if self.identical.contains(name) {
            return Ruling::kept(Role::Base, Rule::Identical);
        }
        if is_recomputed(name) {
            return Ruling::kept(Role::Base, Rule::Recomputed);
        }
        let module = self.places.of(name).module.and_then(|module| self.modules.get(module));
        if module.is_some_and(|module| module.models.is_none()) {
            return Ruling::kept(Role::Pretrained, Rule::Module);
        }
        if let Some(rule) = self.lacking.get(name) {
            return Ruling::kept(Role::Pretrained, *rule);
        }
        if self.is_routed(name, meta)
            && self.method.experts().is_some_and(|e| e.residual_base == ResidualBase::Pretrained)
        {
            return Ruling::kept(Role::Pretrained, Rule::Routed);
        }
        match self.method {
            Method::Tabled(tabled) => match tabled.description.kind {
                Kind::Elementwise { .. }
                    if tabled.calibrate.is_none() || self.average(name, meta).is_some() =>
                {
                    Ruling::plain(Role::Sum)
                }
                Kind::Spectral if tabled.description == &tsv::METHOD && tabled.calibrate.is_none() => {
                    self.average(name, meta).unwrap_or(Ruling::plain(Role::TsvM))
                }
                _ if tabled.description.is_calibrated() && !self.has_known_inputs(name) => {
                    let why = self.average(name, meta);
                    why.unwrap_or(Ruling::because(
                        Role::Sum,
                        "not a linear layer of a block, whose inputs are known",
                    ))
                }
                _ => self.average(name, meta).unwrap_or(Ruling::plain(Role::Spectral)),
            },
            Method::Esm(esm) if self.is_esm(name, meta, esm) => Ruling::plain(Role::Esm),
            Method::Esm(esm) => self.average(name, meta).unwrap_or_else(|| other_matrix(esm.preset)),
        }
    }

    /// Tensors that no decomposition applies to are averaged.
    fn average(&self, name: &str, meta: &TensorMeta) -> Option<Ruling> {
        let average = |why| Some(Ruling::because(Role::Sum, why));
        match meta.shape.len() {
            0 | 1 => average("one-dimensional"),
            2 if meta.elements() == 0 => average("empty"),
            2 if self.is_vocabulary(name, meta) => average("vocabulary embedding"),
            2 if is_head(name) => average("head"),
            2 if self.gates.contains(name) => average("router gate"),
            2 if block(name).is_some() && !is_layer_weight(name) => {
                average("not the weight of a linear layer")
            }
            2 => None,
            _ => average("three or more dimensions"),
        }
    }

    /// By its name; outside the blocks also by a row for every token.
    fn is_vocabulary(&self, name: &str, meta: &TensorMeta) -> bool {
        let has_row_a_token = self.vocabulary.is_some() && self.vocabulary == meta.shape.first().copied();
        is_vocabulary(name) || (has_row_a_token && block(name).is_none())
    }

    /// Whether a weight gets low-rank experts: the paper's choice is qkv and fc1 of a vision transformer, elsewhere every
    /// linear weight of a block.
    pub(super) fn is_routed(&self, name: &str, meta: &TensorMeta) -> bool {
        if self.method.experts().is_none() || !is_weight(meta) {
            return false;
        }
        if let Some(patterns) = &self.routed_patterns {
            return any_matches(patterns, name);
        }
        // a prototype is the mean of what all tokens show
        if is_of_expert(name) {
            return false;
        }
        !matches!(self.linear_of_block(name), None | Some(BlockWeight::Vit(VitWeight::Fc2)))
    }

    fn is_esm(&self, name: &str, meta: &TensorMeta, esm: &Esm) -> bool {
        if !is_weight(meta) {
            return false;
        }
        if let Some(patterns) = &self.patterns {
            return any_matches(patterns, name);
        }
        match self.linear_of_block(name) {
            Some(BlockWeight::Vit(VitWeight::Fc2)) => esm.preset != Preset::EsmPaper,
            found => found.is_some(),
        }
    }

    /// Whether a matrix is the weight of a layer whose inputs a calibration holds: of a block, and of the tower that runs.
    fn has_known_inputs(&self, name: &str) -> bool {
        let part = match self.architecture {
            Architecture::Vit { tower: part } | Architecture::Blocks { part } => part,
        };
        block(name).is_some() && is_layer_weight(name) && part.is_none_or(|part| has_part(name, part))
    }

    /// The linear weight of a block that the architecture's rule sees in a name.
    fn linear_of_block(&self, name: &str) -> Option<BlockWeight> {
        let (_, _, after) = block(name)?;
        if self.gates.contains(name) || !is_layer_weight(name) {
            return None;
        }
        match self.architecture {
            Architecture::Vit { tower } if tower.is_some_and(|part| !has_part(name, part)) => None,
            Architecture::Vit { .. } => vit_weight(after).map(BlockWeight::Vit),
            Architecture::Blocks { part } if part.is_some_and(|part| !has_part(name, part)) => None,
            Architecture::Blocks { .. } => (!is_vocabulary(name)).then_some(BlockWeight::Any),
        }
    }
}

/// Whether a pattern names a tensor, or the tensor that an expert's matrix is a slice of.
pub(super) fn any_matches(patterns: &[WildMatch], name: &str) -> bool {
    let names = [Some(name), slice_of(name).map(|(whole, _)| whole)];
    names.into_iter().flatten().any(|name| patterns.iter().any(|p| p.matches(name)))
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

/// The gates of mixtures of experts: their rows choose experts, and belong to no subspace of directions.
fn gates(family: &Family) -> HashSet<&str> {
    let modules: HashSet<&str> = family
        .base
        .names()
        .flat_map(|name| {
            [".experts.", ".experts", ".shared_expert."]
                .into_iter()
                .filter_map(|at| Some(name.split_once(at)?.0))
        })
        .collect();
    family.base.names().filter(|name| is_router_gate(name, |parent| modules.contains(parent))).collect()
}

/// The tensors that no expert has, by the first expert's reason. A task vector that lacks a tensor leaves it as it is, which the
/// sum of differences does too; so does an adapter.
fn lacking_everywhere(family: &Family) -> IndexMap<&str, Rule> {
    let Some((first, rest)) = family.experts.split_first() else { return IndexMap::new() };
    let lacks = first.matching.lacks.iter().filter(|(name, rule)| {
        !rule.leaves_as_is() && rest.iter().all(|e| e.matching.lacks.contains_key(*name))
    });
    lacks.map(|(name, rule)| (name.as_str(), *rule)).collect()
}

/// Matrices that are not ESM's.
fn other_matrix(preset: Preset) -> Ruling {
    match preset {
        Preset::EsmPaper => Ruling::because(Role::Sum, "a matrix that esm-paper averages"),
        _ => Ruling::because(Role::TsvM, "a matrix that is not among ESM's layers"),
    }
}

fn has_part(name: &str, part: &str) -> bool {
    name.split('.').any(|p| p == part)
}
