//! An account of every tensor: `read = merged + copied + left out`, for the base and every expert.

use super::rule::Rule;
use super::{Error, Expert, Family, Layer, Role};
use crate::adapter::Adapter;
use indexmap::IndexMap;
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// The account of a merge.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Account {
    /// The base's tensors, each of which is one of the output.
    pub base: ModelAccount,
    /// Each expert's, by its name.
    pub experts: IndexMap<String, ModelAccount>,
}

/// What becomes of the tensors of one model, in numbers of tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelAccount {
    /// In the model's files.
    pub read: usize,
    /// Merged into a tensor of the output.
    pub merged: usize,
    /// Of the merged ones: found under another name, by rule.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub renamed: IndexMap<Rule, usize>,
    /// What stands before the names of this model and not before the base's (or, with a minus, the reverse).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The base's: taken into the output as they are, by rule.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub copied: IndexMap<Rule, usize>,
    /// An expert's: not used, by rule.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub left_out: IndexMap<Rule, usize>,
    /// Tensors of the base that an expert has not, so that its difference is zero there; by rule.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub lacking: IndexMap<Rule, usize>,
}

impl ModelAccount {
    /// Whether every tensor that was read is accounted for.
    pub fn balances(&self) -> bool {
        let sum = |by_rule: &IndexMap<Rule, usize>| by_rule.values().sum::<usize>();
        self.read == self.merged + sum(&self.copied) + sum(&self.left_out)
    }

    /// `142 read = 138 merged + 4 left out (head of another task 2, recomputed by loaders 2)`
    pub fn line(&self) -> String {
        let mut line = format!("{} read = {} merged", self.read, self.merged);
        for (what, by_rule) in [("copied", &self.copied), ("left out", &self.left_out)] {
            let sum: usize = by_rule.values().sum();
            if sum > 0 {
                line += &format!(" + {sum} {what} ({})", listed(by_rule));
            }
        }
        if !self.renamed.is_empty() {
            line += &format!("; under other names: {}", listed(&self.renamed));
        }
        if let Some(prefix) = &self.prefix {
            line += &format!(", `{prefix}`");
        }
        if !self.lacking.is_empty() {
            line += &format!("; not there: {}", listed(&self.lacking));
        }
        line
    }
}

/// One line a model; experts with the same account share theirs.
impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut lines: IndexMap<String, Vec<&str>> = IndexMap::new();
        for (name, account) in &self.experts {
            lines.entry(account.line()).or_default().push(name);
        }
        write!(f, "tensors of the base: {}", self.base.line())?;
        let all = lines.len() == 1 && self.experts.len() > 1;
        for (line, names) in lines {
            let whose = if all { "each expert".to_owned() } else { names.join(", ") };
            write!(f, "\ntensors of {whose}: {line}")?;
        }
        Ok(())
    }
}

fn listed(by_rule: &IndexMap<Rule, usize>) -> String {
    by_rule.iter().map(|(rule, n)| format!("{} {n}", rule.name())).collect::<Vec<_>>().join(", ")
}

/// Accounts for all tensors of a family by what its layers do.
pub(super) fn account(family: &Family, layers: &[Layer]) -> Result<Account, Error> {
    let mut kept: HashMap<&str, Rule> = HashMap::new();
    let mut merged: HashSet<&str> = HashSet::new();
    for layer in layers {
        for part in &layer.parts {
            match (layer.role, layer.kept) {
                (Role::Base | Role::Pretrained, rule) => {
                    kept.insert(&part.name, rule.unwrap_or(Rule::Integer));
                }
                _ => {
                    merged.insert(&part.name);
                }
            }
        }
    }
    let mut base =
        ModelAccount { read: family.base.names().count(), merged: merged.len(), ..Default::default() };
    kept.values().for_each(|rule| *base.copied.entry(*rule).or_default() += 1);
    check("the base", family.base.path(), &base)?;
    let mut experts = IndexMap::new();
    for expert in &family.experts {
        let account = of_expert(expert, &merged, &kept);
        check(&format!("expert `{}`", expert.name), expert.own.path(), &account)?;
        experts.insert(expert.name.clone(), account);
    }
    Ok(Account { base, experts })
}

fn of_expert(expert: &Expert, merged: &HashSet<&str>, kept: &HashMap<&str, Rule>) -> ModelAccount {
    let matching = &expert.matching;
    let mut account = ModelAccount {
        read: keys_read(expert),
        prefix: matching.prefix.as_ref().map(ToString::to_string),
        ..Default::default()
    };
    // one tensor may stand for two of the base: it counts once, as merged if either is
    let mut used: IndexMap<&str, Option<Rule>> = IndexMap::new();
    let own = |(name, own)| matching.own(own).map(move |own| (name, own));
    let pairs = matching.pairs.iter().map(|(name, own)| (name.as_str(), own.as_str())).flat_map(own);
    for (name, own) in pairs.chain(expert.adapter.iter().flat_map(Adapter::uses)) {
        let rule = if merged.contains(name) { None } else { kept.get(name).copied() };
        let seen = used.entry(own).or_insert(rule);
        *seen = if rule.is_none() { None } else { *seen };
    }
    for rule in used.values() {
        match rule {
            None => account.merged += 1,
            Some(rule) => *account.left_out.entry(*rule).or_default() += 1,
        }
    }
    let count = |into: &mut IndexMap<Rule, usize>, rules: &IndexMap<String, Rule>| {
        rules.values().for_each(|rule| *into.entry(*rule).or_default() += 1);
    };
    count(&mut account.left_out, &matching.left_out);
    count(&mut account.renamed, &matching.mapped);
    count(&mut account.lacking, &matching.lacks);
    account
}

/// Tensors in the files of an expert.
fn keys_read(expert: &Expert) -> usize {
    let beside = expert.adapter.as_ref().filter(|adapter| adapter.file().path() != expert.own.path());
    expert.own.names().count() + beside.map_or(0, |adapter| adapter.file().names().count())
}

fn check(what: &str, path: &std::path::Path, account: &ModelAccount) -> Result<(), Error> {
    if account.balances() {
        return Ok(());
    }
    let reason = format!(
        "the account of {what} does not balance ({}): a defect of esmerge; please report it",
        account.line()
    );
    Err(Error::Unsupported { path: path.to_path_buf(), reason })
}
