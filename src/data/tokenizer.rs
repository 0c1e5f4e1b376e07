//! A model's `tokenizer.json`. The library that reads it panics, or takes all memory, on some files that it should refuse.

mod check;

use super::Error;
use super::guard::guarded;
use crate::files;
use crate::host::PathExt;
use crate::model::Tokens;
use std::path::{Path, PathBuf};
use tokenizers::{PostProcessor, Tokenizer, TruncationParams};

/// The tokenizer of a model, without padding.
pub struct TextTokenizer {
    path: PathBuf,
    tokenizer: Tokenizer,
}

impl TextTokenizer {
    /// Opens the tokenizer in a model's folder, for texts of the file `data`. `max_length` takes the place of the tokenizer's
    /// own truncation.
    pub fn open(
        folder: Option<&Path>,
        data: &Path,
        max_length: Option<usize>,
    ) -> Result<TextTokenizer, Error> {
        let path = folder.map(|f| f.join("tokenizer.json")).filter(|p| p.leads_to_file()).ok_or_else(|| {
            let place = folder.map_or("the model".to_owned(), |f| f.display().to_string());
            Error::bad(data, format!("text needs the model's tokenizer.json, which {place} lacks; download it, or give token ids in a safetensors file"))
        })?;
        let mut tokenizer = load(&path)?;
        tokenizer.with_padding(None);
        let own = tokenizer.get_truncation().cloned();
        // a stride repeats tokens between the pieces that are cut off, which are not looked at
        let truncation = own.map(|own| TruncationParams { stride: 0, ..own });
        let asked = max_length.map(|max_length| TruncationParams { max_length, ..Default::default() });
        let mut opened = TextTokenizer { path, tokenizer };
        opened.truncate(asked.or(truncation))?;
        Ok(opened)
    }

    fn truncate(&mut self, truncation: Option<TruncationParams>) -> Result<(), Error> {
        if let Some(length) = truncation.as_ref().map(|t| t.max_length) {
            self.room(length, false).map_err(|reason| Error::bad(&self.path, reason))?;
        }
        let set = self.tokenizer.with_truncation(truncation).map(|_| ()).map_err(|e| e.to_string());
        set.map_err(|reason| unusable(&self.path, reason))
    }

    /// A text of so many tokens must have room for the special ones.
    fn room(&self, length: usize, is_pair: bool) -> Result<(), String> {
        let special = self.tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(is_pair));
        if length >= special {
            return Ok(());
        }
        let of_what = if is_pair { "pair of texts" } else { "text" };
        Err(format!(
            "texts are cut to {length} tokens, but the tokenizer adds {special} special tokens to a {of_what}; cut them to \
             {special} or more"
        ))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens of a text, or of a pair.
    pub fn encode(&self, first: String, second: Option<String>) -> Result<Tokens, String> {
        if let (Some(truncation), true) = (self.tokenizer.get_truncation(), second.is_some()) {
            self.room(truncation.max_length, true)?;
        }
        let encoded = guarded(|| match second {
            None => self.tokenizer.encode(first, true),
            Some(second) => self.tokenizer.encode((first, second), true),
        });
        match encoded {
            Ok(Ok(encoded)) => {
                Ok(Tokens { ids: encoded.get_ids().to_vec(), types: encoded.get_type_ids().to_vec() })
            }
            Ok(Err(reason)) => Err(reason.to_string()),
            Err(reason) => Err(unusable(&self.path, reason).to_string()),
        }
    }
}

/// The tokenizer of a file.
pub(super) fn load(path: &Path) -> Result<Tokenizer, Error> {
    let bytes = files::read(path, files::TOKENIZER).map_err(|e| unusable(path, e.to_string()))?;
    check::check(&bytes).map_err(|reason| unusable(path, reason))?;
    let loaded = guarded(|| Tokenizer::from_bytes(&bytes).map_err(|e| e.to_string()));
    loaded.flatten().map_err(|reason| unusable(path, reason))
}

fn unusable(path: &Path, reason: String) -> Error {
    Error::bad(path, format!("is not a tokenizer that can be used: {reason}"))
}
