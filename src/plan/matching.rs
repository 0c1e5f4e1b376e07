//! Which tensor of an expert belongs to which tensor of the base, where their names are not the same.

use super::names::{
    is_input_embedding, is_output_embedding, is_recomputed, is_task_part, is_training_state, older_spelling,
    tower,
};
use super::rule::Rule;
use super::settings::Settings;
use crate::checkpoint::{self, Checkpoint, Kind, Prefix, Regrouped, kind, regrouped};
use indexmap::IndexMap;
use std::collections::{HashMap, HashSet};

/// How the tensors of an expert stand to the base's.
#[derive(Clone, Debug, Default)]
pub struct Matching {
    /// Base tensor -> the expert's, where it has one.
    pub pairs: IndexMap<String, String>,
    /// Of these, the ones found under another name, and how.
    pub mapped: IndexMap<String, Rule>,
    /// Tensors that are put together of others of the expert's files, or cut out of one: these.
    pub parts: IndexMap<String, Vec<String>>,
    /// What stands before the expert's names, or before the base's, and nowhere in the other.
    pub prefix: Option<Prefix>,
    /// Tensors of the base that the expert lacks.
    pub lacks: IndexMap<String, Rule>,
    /// Tensors of the expert that the base lacks.
    pub left_out: IndexMap<String, Rule>,
    /// What else a user should know.
    pub notes: Vec<String>,
}

impl Matching {
    /// The tensors of the expert's files that hold the values of one that is matched.
    pub fn own<'a>(&'a self, matched: &'a str) -> impl Iterator<Item = &'a str> {
        let parts = self.parts.get(matched);
        let itself = parts.is_none().then_some(matched);
        parts.into_iter().flatten().map(String::as_str).chain(itself)
    }

    /// What a user should know of it, where it is more than names: what was found elsewhere, left out or is not there.
    pub fn note(&self) -> Option<String> {
        let mut clauses = self.notes.clone();
        let first = |rules: &IndexMap<String, Rule>, rule: Rule| {
            let mut of_rule = rules.iter().filter(|(_, r)| **r == rule).map(|(name, _)| name.clone());
            of_rule.next().map(|first| (first, of_rule.count() + 1))
        };
        if let Some(prefix) = &self.prefix {
            clauses.push(match prefix {
                Prefix::OfExpert(prefix) => format!("its names are the base's behind `{prefix}`"),
                Prefix::OfBase(prefix) => format!("its names are the base's without `{prefix}`"),
            });
        }
        if let Some((name, n)) = first(&self.mapped, Rule::OlderSpelling) {
            clauses
                .push(format!("{} found in the other spelling of norms (gamma and beta)", counted(n, &name)));
        }
        if let Some((name, n)) = first(&self.mapped, Rule::Mixture) {
            clauses.push(format!(
                "its files have the experts' weights otherwise: {} made of them",
                counted(n, &name)
            ));
        }
        if let Some((name, n)) = first(&self.lacks, Rule::Head) {
            let zero = "its difference is taken for zero there";
            clauses.push(format!("it lacks {}, of the base's task; {zero}", counted(n, &name)));
        }
        if let Some((name, n)) = first(&self.left_out, Rule::Head) {
            clauses.push(format!("{} of its own task left out", counted(n, &name)));
        }
        if let Some((name, n)) = first(&self.lacks, Rule::Tower) {
            clauses.push(format!("it lacks {}, of another tower", counted(n, &name)));
        }
        if let Some((name, n)) = first(&self.left_out, Rule::Tower) {
            clauses.push(format!("{} of another tower left out", counted(n, &name)));
        }
        (!clauses.is_empty()).then(|| clauses.join("; "))
    }
}

/// Two models that are to be matched.
#[derive(Clone, Copy)]
pub struct Models<'a> {
    /// The base's tensors.
    pub base: &'a Checkpoint,
    /// What its configuration says.
    pub base_settings: &'a Settings,
    /// The expert's tensors.
    pub expert: &'a Checkpoint,
    /// What its configuration says.
    pub expert_settings: &'a Settings,
}

/// Matches all tensors; what no rule explains is in `Err`, as the clause that follows the two models' names.
pub fn match_tensors(models: Models) -> Result<Matching, String> {
    let mut matching = Matching::default();
    same_names(models, &mut matching);
    if 2 * matching.pairs.len() < models.base.names().count() {
        matching.prefix = common_prefix(models, &matching);
    }
    other_names(models, &mut matching);
    let lacks = lacking(models, &mut matching);
    let others = left_over(models, &mut matching);
    match (lacks.first(), others.first()) {
        (None, None) => Ok(matching),
        (Some(name), _) => Err(lacks_without_rule(name, lacks.len(), &others)),
        (None, Some(name)) => Err(format!(
            "it has {}, which the base lacks and no rule of docs/tensors.md leaves out; is it a model of another \
             architecture, or of more layers?",
            counted(others.len(), name)
        )),
    }
}

/// The same of an expert whose files may have a mixture otherwise than the base's: with it as it is matched.
pub fn match_mixtures(models: Models) -> Result<(Checkpoint, Result<Matching, String>), checkpoint::Error> {
    let Some(Regrouped { model, parts }) = regrouped(models.base, models.expert)? else {
        return Ok((models.expert.clone(), match_tensors(models)));
    };
    let matched = match_tensors(Models { expert: &model, ..models }).map(|matching| {
        let mapped = parts.keys().map(|name| (name.clone(), Rule::Mixture)).collect();
        Matching { mapped: [matching.mapped, mapped].into_iter().flatten().collect(), parts, ..matching }
    });
    Ok((model, matched))
}

/// A task vector is matched by name alone.
pub fn match_delta(base: &Checkpoint, delta: &Checkpoint) -> Result<Matching, String> {
    let settings = Settings::default();
    let models = Models { base, base_settings: &settings, expert: delta, expert_settings: &settings };
    let mut matching = Matching::default();
    same_names(models, &mut matching);
    let unpaired = delta.names().find(|name| base.get(name).is_none());
    if let Some(name) = unpaired {
        let prefix = match common_prefix(models, &matching) {
            Some(Prefix::OfExpert(prefix)) => format!("; its names begin with `{prefix}`, rename them"),
            Some(Prefix::OfBase(prefix)) => format!("; the base's names begin with `{prefix}`, add it"),
            None => String::new(),
        };
        return Err(format!("its task vector has the tensor `{name}`, which the base lacks{prefix}"));
    }
    let lacks = base.names().filter(|name| !matching.pairs.contains_key(*name));
    matching.lacks = lacks.map(|name| (name.to_owned(), Rule::NoDifference)).collect();
    Ok(matching)
}

fn lacks_without_rule(name: &str, lacks: usize, others: &[String]) -> String {
    let other = match others.first() {
        None => String::new(),
        Some(other) => format!(" (it has {}, which the base lacks)", counted(others.len(), other)),
    };
    let names = counted(lacks, name);
    format!("it has no {}, which the base has{other}", names.strip_prefix("the ").unwrap_or(&names))
}

fn counted(n: usize, first: &str) -> String {
    match n {
        1 => format!("the tensor `{first}`"),
        n => format!("{n} tensors such as `{first}`"),
    }
}

fn same_names(models: Models, matching: &mut Matching) {
    for name in models.base.names().filter(|name| models.expert.get(name).is_some()) {
        matching.pairs.insert(name.to_owned(), name.to_owned());
    }
}

/// The prefix by which most names of the two models differ: at least half of the smaller one's.
fn common_prefix(models: Models, matching: &Matching) -> Option<Prefix> {
    let unpaired = |model: &Checkpoint, other: &Checkpoint| -> HashSet<String> {
        model.names().filter(|name| other.get(name).is_none()).map(str::to_owned).collect()
    };
    let of_base = unpaired(models.base, models.expert);
    let of_expert = unpaired(models.expert, models.base);
    let enough = (of_base.len().min(of_expert.len()) / 2).max(matching.pairs.len()).max(1);
    let best = Prefix::most_voted(&of_base, &of_expert);
    best.filter(|(_, votes)| *votes >= enough).map(|(prefix, _)| prefix)
}

/// Pairs what has another name in the expert: behind a prefix, in the older spelling, as an alias.
fn other_names(models: Models, matching: &mut Matching) {
    let aliases: HashMap<&str, &str> = models.expert.aliases().collect();
    for name in models.base.names() {
        if matching.pairs.contains_key(name) {
            continue;
        }
        let prefixed = matching.prefix.as_ref().and_then(|prefix| prefix.in_expert(name));
        let direct = prefixed.iter().map(|own| (own.clone(), Rule::Prefix));
        let respelled = prefixed.as_deref().into_iter().chain([name]).filter_map(older_spelling);
        let respelled = respelled.map(|own| (own, Rule::OlderSpelling));
        let aliased = prefixed.as_deref().into_iter().chain([name]).filter_map(|own| aliases.get(own));
        let aliased = aliased.map(|own| ((*own).to_owned(), Rule::Alias));
        let found = direct.chain(respelled).chain(aliased).find(|(own, _)| models.expert.get(own).is_some());
        if let Some((own, rule)) = found {
            matching.mapped.insert(name.to_owned(), rule);
            matching.pairs.insert(name.to_owned(), own);
        }
    }
}

/// Gives a rule to every tensor of the base that the expert lacks; what is left has none.
fn lacking(models: Models, matching: &mut Matching) -> Vec<String> {
    let present = tower_of(models.expert, models.base);
    let mut without = Vec::new();
    for name in models.base.names() {
        if matching.pairs.contains_key(name) {
            continue;
        }
        if let Some(own) = tied(models, matching, name) {
            matching.mapped.insert(name.to_owned(), Rule::Tied);
            matching.pairs.insert(name.to_owned(), own);
            continue;
        }
        let integer = models.base.get(name).is_some_and(|meta| kind(meta.dtype) == Kind::Integer);
        let of_other_tower = present.is_some_and(|present| tower(name).is_some_and(|t| t != present));
        let rule = by_name(name, integer).or(if of_other_tower {
            Some(Rule::Tower)
        } else if is_task_part(name) && !lost_language_head(models, name) {
            Some(Rule::Head)
        } else {
            None
        });
        match rule {
            Some(rule) => {
                matching.lacks.insert(name.to_owned(), rule);
            }
            None => without.push(name.to_owned()),
        }
    }
    without
}

/// The rules that ask for nothing but the name and the kind of values.
fn by_name(name: &str, integer: bool) -> Option<Rule> {
    if is_recomputed(name) {
        Some(Rule::Recomputed)
    } else if integer {
        Some(Rule::Integer)
    } else if is_training_state(name) {
        Some(Rule::Training)
    } else {
        None
    }
}

/// Whether the expert should have this output embedding by its own configuration: an incomplete file, not another task.
fn lost_language_head(models: Models, name: &str) -> bool {
    let expert = models.expert_settings;
    is_output_embedding(name) && expert.has_language_head() && !expert.ties_embeddings()
}

/// The expert's tensor that stands for one of the base's because both are the same by construction: the embedding in place
/// of an output embedding that is tied to it, or of another copy of the vocabulary.
fn tied(models: Models, matching: &Matching, name: &str) -> Option<String> {
    let meta = models.base.get(name)?;
    if let Some(stem) = name.strip_suffix(".decoder.bias") {
        let own = format!("{stem}.bias");
        return (models.expert.get(&own).is_some_and(|m| m.shape == meta.shape)).then_some(own);
    }
    let output = is_output_embedding(name);
    if !(output || is_input_embedding(name)) {
        return None;
    }
    if output && !(models.expert_settings.ties_embeddings() && models.expert_settings.has_language_head()) {
        return None;
    }
    let fits = |own: &str| models.expert.get(own).is_some_and(|m| m.shape == meta.shape);
    let of_pairs = matching.pairs.values().map(String::as_str);
    let rest = models.expert.names().filter(|own| is_input_embedding(own) || is_output_embedding(own));
    of_pairs.filter(|own| is_input_embedding(own)).chain(rest).find(|own| fits(own)).map(str::to_owned)
}

/// The only tower that a model has of those the other has.
fn tower_of(model: &Checkpoint, other: &Checkpoint) -> Option<&'static str> {
    let towers = |model: &Checkpoint| model.names().filter_map(tower).collect::<HashSet<_>>();
    let own = towers(model);
    match own.iter().next() {
        Some(only) if own.len() == 1 && towers(other).len() > 1 => Some(only),
        _ => None,
    }
}

/// Gives a rule to every tensor of the expert that no tensor of the base takes; what is left has none.
fn left_over(models: Models, matching: &mut Matching) -> Vec<String> {
    let taken: HashSet<&str> = matching.pairs.values().map(String::as_str).collect();
    let base_aliases: HashSet<&str> = models.base.aliases().map(|(alias, _)| alias).collect();
    let present = tower_of(models.base, models.expert);
    let mut without = Vec::new();
    let mut left_out = IndexMap::new();
    for own in models.expert.names().filter(|own| !taken.contains(own)) {
        let bare = without_prefix(matching, own);
        let integer = models.expert.get(own).is_some_and(|meta| kind(meta.dtype) == Kind::Integer);
        let of_other_tower = present.is_some_and(|present| tower(bare).is_some_and(|t| t != present));
        let rule = by_name(bare, integer).or(if base_aliases.contains(own) {
            Some(Rule::Alias)
        } else if is_copy_of_tied(models, own, &taken) {
            Some(Rule::Tied)
        } else if of_other_tower {
            Some(Rule::Tower)
        } else if is_task_part(bare) || is_task_part(own) {
            Some(Rule::Head)
        } else {
            None
        });
        match rule {
            Some(rule) => {
                left_out.insert(own.to_owned(), rule);
            }
            None => without.push(own.to_owned()),
        }
    }
    matching.left_out = left_out;
    without
}

/// A name of the expert without what stands before all of them; seen without the base's prefix, heads are recognised all the same.
fn without_prefix<'a>(matching: &Matching, own: &'a str) -> &'a str {
    match &matching.prefix {
        Some(Prefix::OfExpert(prefix)) => own.strip_prefix(prefix.as_str()).unwrap_or(own),
        _ => own,
    }
}

/// Whether a tensor of the expert is a second copy of an embedding that the base stores once: by the base's configuration,
/// or because it holds the same bytes.
fn is_copy_of_tied(models: Models, own: &str, taken: &HashSet<&str>) -> bool {
    let base = models.base_settings;
    if is_output_embedding(own) {
        return base.has_language_head() && base.ties_embeddings();
    }
    let twin = |other: &&&str| is_input_embedding(other) && same_bytes(models.expert, own, other);
    is_input_embedding(own) && taken.iter().find(twin).is_some()
}

/// Bytes compared at a time.
const CHUNK: u64 = 8 << 20;

/// Whether two tensors of a model hold the same; what cannot be read is not the same.
fn same_bytes(model: &Checkpoint, a: &str, b: &str) -> bool {
    let (Some(of_a), Some(of_b)) = (model.get(a), model.get(b)) else { return false };
    let read = |name: &str, start: u64| model.read_bytes(name, start..of_a.bytes.min(start + CHUNK)).ok();
    let equal = |start: u64| read(a, start).is_some_and(|bytes| Some(bytes) == read(b, start));
    (of_a.dtype, &of_a.shape) == (of_b.dtype, &of_b.shape)
        && (0..of_a.bytes).step_by(CHUNK as usize).all(equal)
}
