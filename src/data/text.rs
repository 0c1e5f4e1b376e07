//! Texts from a file, by the model's own tokenizer.

use super::Error;
use super::error::read_text;
use super::rng::Rng;
use super::tokenizer::TextTokenizer;
use crate::model::Tokens;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Keys of a JSON line under which its text is looked for.
const KEYS: [&str; 6] = ["text", "sentence", "prompt", "question", "content", "input"];

/// Bytes of a file of texts.
const MAX_BYTES: u64 = 256 << 20;

/// Bytes of one text, which takes several hundred times as much on its way to tokens.
const MAX_LINE: usize = 1 << 20;

/// Texts, tokenised.
pub struct Texts {
    /// By what.
    pub tokenizer: PathBuf,
    /// Each with the number of its line, counted from 0.
    pub lines: Vec<(usize, Tokens)>,
}

/// Some of the texts of a file, each with the number of its line: one a line, or JSON lines with one of [`KEYS`] (and perhaps
/// `text_pair`).
pub fn from_file(
    path: &Path,
    model_folder: Option<&Path>,
    samples: usize,
    seed: u64,
    max_length: Option<usize>,
) -> Result<Texts, Error> {
    let tokenizer = TextTokenizer::open(model_folder, path, max_length)?;
    let text = read_text(path, MAX_BYTES)?;
    let lines: Vec<(usize, &str)> =
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return Err(Error::bad(path, "the file holds no text; one sample a line is expected"));
    }
    let is_json =
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("json"));
    let chosen = Rng::new(seed).choose(lines.len(), samples);
    let tokenised = chosen
        .into_iter()
        .map(|i| {
            let (number, line) = lines[i];
            if line.len() > MAX_LINE {
                let reason = format!(
                    "line {} has {} bytes, more than the {} KiB expected of a text; give one sample a line",
                    number + 1,
                    line.len(),
                    MAX_LINE >> 10
                );
                return Err(Error::bad(path, reason));
            }
            let (first, second) = if is_json { json(path, number, line)? } else { (line.to_owned(), None) };
            let tokens = tokenizer.encode(first, second).map_err(|reason| {
                let tokenizer = tokenizer.path().display();
                Error::bad(path, format!("line {}: cannot be tokenised by {tokenizer}: {reason}", number + 1))
            })?;
            Ok((number, tokens))
        })
        .collect::<Result<_, Error>>()?;
    Ok(Texts { tokenizer: tokenizer.path().to_path_buf(), lines: tokenised })
}

fn json(path: &Path, line: usize, text: &str) -> Result<(String, Option<String>), Error> {
    let bad = |reason: String| Error::bad(path, format!("line {}: {reason}", line + 1));
    let value: Value = serde_json::from_str(text).map_err(|e| bad(format!("is not valid JSON: {e}")))?;
    if let Some(text) = value.as_str() {
        return Ok((text.to_owned(), None));
    }
    let text = KEYS.iter().find_map(|key| value.get(key)?.as_str());
    let text = text.ok_or_else(|| bad(format!("has no text under any of the keys {}", KEYS.join(", "))))?;
    Ok((text.to_owned(), value.get("text_pair").and_then(Value::as_str).map(str::to_owned)))
}
