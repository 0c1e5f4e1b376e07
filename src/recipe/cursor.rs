//! Walking a YAML tree with the path of the key in hand, so that every error can name it.

use super::Error;
use super::mergekit::{Foreign, foreign};
use super::yaml::{Node, Value};
use std::path::Path;

/// A node, its path, and the recipe it stands in.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    pub recipe: &'a Path,
    pub path: String,
    pub node: &'a Node,
}

impl<'a> Cursor<'a> {
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::new(self.recipe, Some(self.node.line), &self.path, message)
    }

    fn expected(&self, what: &str) -> Error {
        self.error(format!("{what} is expected, but {} is given", self.node.value.describe()))
    }

    pub fn text(&self) -> Result<&'a str, Error> {
        match &self.node.value {
            Value::Text(text) if !text.is_empty() => Ok(text),
            _ => Err(self.expected("text")),
        }
    }

    pub fn number(&self) -> Result<f64, Error> {
        let number = match &self.node.value {
            Value::Int(i) => *i as f64,
            Value::Float(x) => *x,
            Value::Text(text) if text.parse::<f64>().is_ok() => {
                return Err(self
                    .error(format!("a number is expected, but text is given; write {text} without quotes")));
            }
            Value::List(_) => {
                let message = "a number is expected: this parameter is the same for all layers";
                return Err(self.error(message));
            }
            _ => return Err(self.expected("a number")),
        };
        if number.is_finite() { Ok(number) } else { Err(self.expected("a finite number")) }
    }

    pub fn unsigned(&self) -> Result<u64, Error> {
        match self.node.value {
            Value::Int(i) => u64::try_from(i).map_err(|_| self.expected("a whole number from 0 to 2^64 - 1")),
            _ => Err(self.expected("a whole number")),
        }
    }

    /// A switch: YAML's booleans and the words `on` and `off`.
    pub fn switch(&self) -> Option<bool> {
        match &self.node.value {
            Value::Bool(value) => Some(*value),
            Value::Text(text) => match text.as_str() {
                "on" | "On" | "ON" | "yes" | "true" => Some(true),
                "off" | "Off" | "OFF" | "no" | "false" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    pub fn boolean(&self) -> Result<bool, Error> {
        self.switch().ok_or_else(|| self.expected("true or false"))
    }

    /// One of some words; the error lists them.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Error> {
        let found = match &self.node.value {
            Value::Text(text) => choices.iter().find(|(name, _)| name == text),
            _ => None,
        };
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        found.map(|(_, value)| *value).ok_or_else(|| self.expected(&format!("one of {}", names.join(", "))))
    }

    pub fn list(&self) -> Result<Vec<Cursor<'a>>, Error> {
        let Value::List(nodes) = &self.node.value else { return Err(self.expected("a list")) };
        let at = |(i, node)| Cursor { recipe: self.recipe, path: format!("{}[{i}]", self.path), node };
        Ok(nodes.iter().enumerate().map(at).collect())
    }

    /// An entry of a mapping, known or not.
    pub fn entry(&self, key: &str) -> Option<Cursor<'a>> {
        let Value::Map(entries) = &self.node.value else { return None };
        let (_, _, node) = entries.iter().find(|(k, _, _)| k == key)?;
        Some(Cursor { recipe: self.recipe, path: format!("{}.{key}", self.path), node })
    }

    /// All entries of a mapping whose keys are names.
    pub fn entries(&self) -> Result<Vec<(String, Cursor<'a>)>, Error> {
        let Value::Map(entries) = &self.node.value else { return Err(self.expected("a mapping of names")) };
        let at = |(key, _, node): &'a (String, u64, Node)| {
            let path = format!("{}.{key}", self.path);
            (key.clone(), Cursor { recipe: self.recipe, path, node })
        };
        Ok(entries.iter().map(at).collect())
    }

    pub fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// The entries of a mapping; a key that is not among `known` is an error that suggests the nearest one.
    pub fn map(&self, known: &[&str]) -> Result<Mapping<'a>, Error> {
        let Value::Map(entries) = &self.node.value else {
            return Err(self.expected("a mapping of keys to values"));
        };
        let mapping = Mapping { at: self.clone(), entries };
        let harmless = |key: &str| matches!(foreign(key), Some(Foreign::Harmless(_)));
        match entries.iter().find(|(key, _, _)| !known.contains(&key.as_str()) && !harmless(key)) {
            None => Ok(mapping),
            Some((key, line, _)) => {
                Err(Error::new(self.recipe, Some(*line), mapping.path_of(key), unknown(key, known)))
            }
        }
    }
}

/// The entries of a mapping whose keys are all known.
pub(super) struct Mapping<'a> {
    at: Cursor<'a>,
    entries: &'a [(String, u64, Node)],
}

impl<'a> Mapping<'a> {
    fn path_of(&self, key: &str) -> String {
        if self.at.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at.path) }
    }

    pub fn get(&self, key: &str) -> Option<Cursor<'a>> {
        let (_, _, node) = self.entries.iter().find(|(k, _, _)| k == key)?;
        Some(Cursor { recipe: self.at.recipe, path: self.path_of(key), node })
    }

    /// The keys that are not `known` and change nothing, with why.
    pub fn ignored(&self, known: &[&str]) -> Vec<String> {
        let note = |(key, line, _): &(String, u64, Node)| match foreign(key) {
            Some(Foreign::Harmless(why)) if !known.contains(&key.as_str()) => {
                Some(format!("line {line}: `{}` changes nothing here: {why}", self.path_of(key)))
            }
            _ => None,
        };
        self.entries.iter().filter_map(note).collect()
    }

    /// A key that must be there; `why` says what it is for.
    pub fn require(&self, key: &str, why: &str) -> Result<Cursor<'a>, Error> {
        self.get(key).ok_or_else(|| {
            Error::new(self.at.recipe, Some(self.at.node.line), self.path_of(key), format!("missing: {why}"))
        })
    }
}

/// Similarity (Jaro and Winkler) from which a key is taken for a slip of another.
const LIKE: f64 = 0.85;

fn unknown(key: &str, known: &[&str]) -> String {
    if let Some(Foreign::Unsupported(advice)) = foreign(key) {
        return format!("known from mergekit, but {advice}");
    }
    let similarity = |candidate: &str| strsim::jaro_winkler(key, candidate);
    let nearest = known.iter().copied().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let known = known.join(", ");
    match nearest.filter(|nearest| similarity(nearest) >= LIKE) {
        Some(nearest) => format!("unknown key; did you mean `{nearest}`? Known here: {known}"),
        None => format!("unknown key. Known here: {known}"),
    }
}
