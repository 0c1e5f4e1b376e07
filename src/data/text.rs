//! Texts from a file, by the model's own tokenizer.

use super::Error;
use super::error::read_text;
use super::rng::Rng;
use crate::model::Tokens;
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;

/// Keys of a JSON line under which its text is looked for.
const KEYS: [&str; 6] = ["text", "sentence", "prompt", "question", "content", "input"];

/// Some of the texts of a file: one a line, or JSON lines with one of [`KEYS`] (and perhaps `text_pair`).
pub fn from_file(
    path: &Path,
    model_folder: Option<&Path>,
    samples: usize,
    seed: u64,
    max_length: Option<usize>,
) -> Result<Vec<Tokens>, Error> {
    let tokenizer = tokenizer(model_folder, path, max_length)?;
    let text = read_text(path)?;
    let lines: Vec<(usize, &str)> =
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return Err(Error::bad(path, "the file holds no text; one sample a line is expected"));
    }
    let is_json =
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("json"));
    let chosen = Rng::new(seed).choose(lines.len(), samples);
    chosen
        .into_iter()
        .map(|i| {
            let (number, line) = lines[i];
            let (first, second) = if is_json { json(path, number, line)? } else { (line.to_owned(), None) };
            encode(&tokenizer, path, number, first, second)
        })
        .collect()
}

fn encode(
    tokenizer: &Tokenizer,
    path: &Path,
    line: usize,
    first: String,
    second: Option<String>,
) -> Result<Tokens, Error> {
    let encoded = match second {
        None => tokenizer.encode(first, true),
        Some(second) => tokenizer.encode((first, second), true),
    };
    let encoded =
        encoded.map_err(|e| Error::bad(path, format!("line {}: cannot be tokenised: {e}", line + 1)))?;
    Ok(Tokens { ids: encoded.get_ids().to_vec(), types: encoded.get_type_ids().to_vec() })
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

/// The tokenizer of the model, without padding.
fn tokenizer(folder: Option<&Path>, data: &Path, max_length: Option<usize>) -> Result<Tokenizer, Error> {
    let path = folder.map(|f| f.join("tokenizer.json")).filter(|p| p.is_file()).ok_or_else(|| {
        let place = folder.map_or("the model".to_owned(), |f| f.display().to_string());
        Error::bad(data, format!("text needs the model's tokenizer.json, which {place} lacks; download it, or give token ids in a safetensors file"))
    })?;
    let broken =
        |e: tokenizers::Error| Error::bad(&path, format!("is not a tokenizer that can be read: {e}"));
    let mut tokenizer = Tokenizer::from_file(&path).map_err(broken)?;
    tokenizer.with_padding(None);
    if let Some(max_length) = max_length {
        let truncation = tokenizers::TruncationParams { max_length, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(broken)?;
    }
    Ok(tokenizer)
}
