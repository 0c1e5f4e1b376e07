//! Settings files as Python writes them: JSON in which `NaN`, `Infinity` and `-Infinity` may stand for numbers.

use crate::backend::Dtype;
use crate::files;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::io;
use std::path::Path;

/// Reads a settings file; numbers that are not finite are null to the reader.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(parse(&files::read(path, files::SETTINGS)?)?)
}

/// Reads the text of a settings file.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(&without_infinities(text))
}

/// What Python writes for numbers that JSON lacks.
const NOT_FINITE: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

fn without_infinities(text: &[u8]) -> Cow<'_, [u8]> {
    let mut strict = Vec::new();
    let (mut kept, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest[0] == b'"' {
            at += string(rest).len();
        } else if let Some(word) = NOT_FINITE.iter().find(|word| rest.starts_with(word)) {
            strict.extend_from_slice(&text[kept..at]);
            strict.extend_from_slice(b"null");
            at += word.len();
            kept = at;
        } else {
            at += 1;
        }
    }
    if kept == 0 {
        return Cow::Borrowed(text);
    }
    strict.extend_from_slice(&text[kept..]);
    Cow::Owned(strict)
}

/// The string at the start of some JSON, with its quotes; all of it where no quote ends it.
fn string(json: &[u8]) -> &[u8] {
    let mut at = 1;
    while at < json.len() {
        match json[at] {
            b'"' => return &json[..=at],
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    json
}

/// Keys by which configurations give the type of the weights, their sub-configurations too.
const DTYPE_KEYS: [&[u8]; 2] = [b"\"torch_dtype\"", b"\"dtype\""];
/// The types that a merge may leave for another.
const FLOATS: [&str; 7] = ["float32", "float", "float16", "half", "bfloat16", "float64", "double"];

/// The text with another type of the weights wherever it gives one; else untouched, byte for byte.
pub(super) fn with_dtype(text: &[u8], dtype: Dtype) -> Vec<u8> {
    let mut changed = Vec::with_capacity(text.len());
    let (mut kept, mut at) = (0, 0);
    while at < text.len() {
        if text[at] != b'"' {
            at += 1;
            continue;
        }
        let key = string(&text[at..]);
        at += key.len();
        if !DTYPE_KEYS.contains(&key) {
            continue;
        }
        let value = at + text[at..].iter().take_while(|b| b.is_ascii_whitespace() || **b == b':').count();
        if text.get(value) == Some(&b'"') {
            let old = string(&text[value..]);
            at = value + old.len();
            let (prefix, name) = match old.strip_prefix(b"\"torch.") {
                Some(name) => ("torch.", name),
                None => ("", &old[1..]),
            };
            if FLOATS.iter().any(|float| name.strip_suffix(b"\"") == Some(float.as_bytes())) {
                changed.extend_from_slice(&text[kept..value]);
                changed.extend_from_slice(format!("\"{prefix}{dtype}\"").as_bytes());
                kept = at;
            }
        }
    }
    changed.extend_from_slice(&text[kept..]);
    changed
}

/// The text without what it says of quantisation; untouched if it says nothing of it.
pub(super) fn without_quantisation(text: Vec<u8>) -> Vec<u8> {
    let Ok(mut value) = parse::<serde_json::Value>(&text) else { return text };
    let Some(object) = value.as_object_mut() else { return text };
    let before = object.len();
    object.retain(|key, _| !["quantization_config", "compression_config"].contains(&key.as_str()));
    if object.len() == before {
        return text;
    }
    serde_json::to_vec_pretty(&value).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn numbers_that_are_not_finite_are_read_as_null() {
        let text = br#"{"a": [0.0, Infinity, -Infinity], "b": NaN, "c": "NaN \" Infinity", "d": 1}"#;
        let value: Value = parse(text).unwrap();
        assert_eq!(value, json!({ "a": [0.0, null, null], "b": null, "c": "NaN \" Infinity", "d": 1 }));
        for broken in ["{", r#"{"a": NaNcy}"#, r#"{"a": "x}"#, "", r#""\"#] {
            assert!(parse::<Value>(broken.as_bytes()).is_err(), "{broken}");
        }
    }

    #[test]
    fn the_type_is_changed_at_every_level_and_nothing_else() {
        let text = r#"{"dtype" : "float32", "x": [1e3, Infinity], "text_config": {"torch_dtype":"torch.float32",
  "name": "dtype", "dtype": null}, "v": {"dtype": "int8", "note": "\"dtype\": \"float32\""}}"#;
        let changed = String::from_utf8(with_dtype(text.as_bytes(), Dtype::Bf16)).unwrap();
        let expected = text
            .replace(r#""dtype" : "float32""#, r#""dtype" : "bfloat16""#)
            .replace("torch.float32", "torch.bfloat16");
        assert_eq!(changed, expected);
    }
}
