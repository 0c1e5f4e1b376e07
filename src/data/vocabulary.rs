//! The tokens of a model's tokenizer, and a tokenizer that has those of several.

use super::Error;
use super::guard::guarded;
use super::tokenizer::load;
use crate::host::PathExt;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokenizers::{AddedToken, Tokenizer};

/// A tokenizer as what it calls its tokens.
#[derive(Clone)]
pub struct Vocabulary {
    path: PathBuf,
    tokenizer: Tokenizer,
    ids: HashMap<String, usize>,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vocabulary({}, {} tokens)", self.path.display(), self.ids.len())
    }
}

impl Vocabulary {
    /// The tokenizer in a folder; none if there is no `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn open(folder: &Path) -> Result<Option<Vocabulary>, Error> {
        let path = folder.join("tokenizer.json");
        if !path.leads_to_file() {
            return Ok(None);
        }
        let tokenizer = load(&path)?;
        let ids = ids(&tokenizer);
        Ok(Some(Vocabulary { path, tokenizer, ids }))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every token's row.
    pub fn ids(&self) -> &HashMap<String, usize> {
        &self.ids
    }

    /// Rows of a table for it.
    pub fn rows(&self) -> usize {
        self.ids.values().max().map_or(0, |last| last + 1)
    }

    /// Adds tokens of another that this one lacks, those that have a row among so many: first what texts are cut into, then what was
    /// added to that.
    pub fn add(&mut self, other: &Vocabulary, rows: usize) -> Result<(), Error> {
        let mut own: Vec<(&String, usize)> = other.ids.iter().map(|(token, &id)| (token, id)).collect();
        own.sort_unstable_by_key(|&(_, id)| id);
        let added: HashMap<String, AddedToken> = other
            .tokenizer
            .get_added_tokens_decoder()
            .into_values()
            .map(|a| (a.content.clone(), a))
            .collect();
        let lacking = own.into_iter().filter(|(token, id)| *id < rows && !self.ids.contains_key(*token));
        let (plain, special): (Vec<_>, Vec<_>) =
            lacking.map(|(token, _)| token).partition(|token| !added.contains_key(*token));
        let plain = plain.into_iter().map(|token| AddedToken::from(token.as_str(), false));
        let special = special.into_iter().filter_map(|token| added.get(token).cloned());
        let tokens: Vec<AddedToken> = plain.chain(special).collect();
        self.add_tokens(&tokens)
    }

    /// Adds a token, if it lacks it.
    pub fn add_token(&mut self, token: &str) -> Result<(), Error> {
        self.add_tokens(&[AddedToken::from(token, false)])
    }

    fn add_tokens(&mut self, tokens: &[AddedToken]) -> Result<(), Error> {
        let tokenizer = &mut self.tokenizer;
        guarded(|| tokenizer.add_tokens(tokens)).map_err(|reason| Error::bad(&self.path, reason))?;
        self.ids = ids(&self.tokenizer);
        Ok(())
    }

    /// Its `tokenizer.json`.
    pub fn to_json(&self) -> Result<String, Error> {
        let text = guarded(|| self.tokenizer.to_string(true).map_err(|e| e.to_string())).flatten();
        text.map_err(|reason| Error::bad(&self.path, reason))
    }
}

fn ids(tokenizer: &Tokenizer) -> HashMap<String, usize> {
    tokenizer.get_vocab(true).into_iter().map(|(token, id)| (token, id as usize)).collect()
}
