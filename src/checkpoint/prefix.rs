//! A prefix by which the names of two models differ: `bert.`, `model.`, `_orig_mod.`.

use std::collections::{HashMap, HashSet};

/// A prefix that one of two models has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// The expert's names begin with it.
    OfExpert(String),
    /// The base's names begin with it.
    OfBase(String),
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Prefix::OfExpert(prefix) => f.write_str(prefix),
            Prefix::OfBase(prefix) => write!(f, "-{prefix}"),
        }
    }
}

impl Prefix {
    /// The prefix by which most of these names, none of which both models have, differ; and how many do.
    pub fn most_voted(of_base: &HashSet<String>, of_expert: &HashSet<String>) -> Option<(Prefix, usize)> {
        let added = most_voted(of_expert, of_base).map(|(prefix, votes)| (Prefix::OfExpert(prefix), votes));
        let removed = most_voted(of_base, of_expert).map(|(prefix, votes)| (Prefix::OfBase(prefix), votes));
        [added, removed].into_iter().flatten().max_by_key(|(_, votes)| *votes)
    }

    /// The name that a tensor of the base has in the expert.
    pub fn in_expert(&self, name: &str) -> Option<String> {
        match self {
            Prefix::OfExpert(prefix) => Some(format!("{prefix}{name}")),
            Prefix::OfBase(prefix) => name.strip_prefix(prefix.as_str()).map(str::to_owned),
        }
    }

    /// The name that something of the expert has in the base.
    pub fn in_base(&self, name: &str) -> Option<String> {
        match self {
            Prefix::OfExpert(prefix) => name.strip_prefix(prefix.as_str()).map(str::to_owned),
            Prefix::OfBase(prefix) => Some(format!("{prefix}{name}")),
        }
    }
}

/// The prefix without which most of the `long` names are among the `short` ones, and how many are.
fn most_voted(long: &HashSet<String>, short: &HashSet<String>) -> Option<(String, usize)> {
    let mut votes: HashMap<&str, usize> = HashMap::new();
    for name in long {
        for (dot, _) in name.match_indices('.') {
            if short.contains(&name[dot + 1..]) {
                *votes.entry(&name[..=dot]).or_default() += 1;
            }
        }
    }
    let best = votes.into_iter().max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(a.0)));
    best.map(|(prefix, votes)| (prefix.to_owned(), votes))
}
