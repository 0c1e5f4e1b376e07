//! JSON settings as Python writes them.

use crate::files;
use serde_json::Value;
use std::path::Path;

/// Reads a JSON file of settings. Python writes numbers that JSON does not have, `NaN` and `Infinity`; they are read as
/// `null`. The error is a clause that follows the file's name.
pub fn read_settings(path: &Path) -> Result<Value, String> {
    let bytes = files::read(path, files::SETTINGS).map_err(|e| e.to_string())?;
    serde_json::from_slice(&bytes)
        .or_else(|e| serde_json::from_slice(&without_odd_numbers(&bytes)).map_err(|_| e.to_string()))
}

/// The text with `null` in place of `NaN`, `Infinity` and `-Infinity` outside strings.
fn without_odd_numbers(text: &[u8]) -> Vec<u8> {
    const ODD: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut plain = Vec::with_capacity(text.len());
    let (mut at, mut in_string) = (0, false);
    while at < text.len() {
        match text[at] {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                plain.push(text[at]);
                at += 1;
            }
            _ if !in_string => {
                if let Some(odd) = ODD.iter().find(|odd| text[at..].starts_with(odd)) {
                    plain.extend(b"null");
                    at += odd.len();
                    continue;
                }
            }
            _ => {}
        }
        plain.extend(text.get(at));
        at += 1;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_only_python_knows_are_null() {
        let text = br#"{"a": [0.0, Infinity, -Infinity], "b": NaN, "c": "NaN \" Infinity"}"#;
        let value: Value = serde_json::from_slice(&without_odd_numbers(text)).unwrap();
        assert_eq!(value, serde_json::json!({"a": [0.0, null, null], "b": null, "c": "NaN \" Infinity"}));
    }
}
