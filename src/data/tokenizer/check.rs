//! What in a `tokenizer.json` would cost all memory, and so cannot be left to the library.

use serde::Deserialize;
use serde_json::Value;

/// The parts that are looked at; the vocabulary is not.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
}

/// What a step of a given type must fulfil.
type Check = fn(&Value) -> Result<(), String>;

const CHECKS: [(&str, Check); 3] =
    [("TemplateProcessing", template), ("Precompiled", charsmap), ("FixedLength", fixed_length)];

/// How many times as long a text may become by replacements.
const MAX_GROWTH: f64 = 1e4;

/// Refuses a tokenizer, with the reason.
pub fn check(json: &[u8]) -> Result<(), String> {
    let parts: Parts = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let mut growth = 1.0;
    for part in [&parts.normalizer, &parts.pre_tokenizer, &parts.post_processor] {
        check_part(part, &mut growth)?;
    }
    if growth > MAX_GROWTH {
        return Err(format!("its replacements make a text {growth:.0} times as long"));
    }
    Ok(())
}

/// A step, and all that lie in it.
fn check_part(part: &Value, growth: &mut f64) -> Result<(), String> {
    if let Some(kind) = part.get("type").and_then(Value::as_str) {
        CHECKS.iter().filter(|(name, _)| *name == kind).try_for_each(|(_, check)| check(part))?;
        if kind == "Replace" {
            *growth *= replacement(part);
        }
    }
    match part {
        Value::Array(parts) => parts.iter().try_for_each(|part| check_part(part, growth)),
        Value::Object(parts) => parts.values().try_for_each(|part| check_part(part, growth)),
        _ => Ok(()),
    }
}

/// How many times as long a replacement makes what it replaces, at most.
fn replacement(replace: &Value) -> f64 {
    let length = |text: Option<&str>| text.map_or(1, str::len).max(1) as f64;
    let pattern = replace.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str);
    (length(replace.get("content").and_then(Value::as_str)) / length(pattern)).max(1.0)
}

/// A template puts each text in once, and names special tokens that it lists.
fn template(template: &Value) -> Result<(), String> {
    for (side, texts) in [("single", &["A"][..]), ("pair", &["A", "B"])] {
        let pieces = template.get(side).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let id = |piece: &Value, kind: &str| Some(piece.get(kind)?.get("id")?.as_str()?.to_owned());
        let placed: Vec<String> = pieces.iter().filter_map(|piece| id(piece, "Sequence")).collect();
        if let Some(text) = placed.iter().find(|text| !texts.contains(&text.as_str())) {
            return Err(format!("its template `{side}` has a place for a text `{text}`"));
        }
        if let Some(text) = texts.iter().find(|text| placed.iter().filter(|p| p == text).count() > 1) {
            return Err(format!("its template `{side}` takes the text `{text}` more than once"));
        }
        let listed = |id: &String| template.get("special_tokens").is_some_and(|t| t.get(id).is_some());
        if let Some(id) = pieces.iter().filter_map(|p| id(p, "SpecialToken")).find(|id| !listed(id)) {
            return Err(format!(
                "its template `{side}` has the special token `{id}`, which it does not list"
            ));
        }
    }
    Ok(())
}

/// Base64 of a number of bytes, then a table of so many (a whole number of words), then text.
fn charsmap(normalizer: &Value) -> Result<(), String> {
    let text = normalizer.get("precompiled_charsmap").and_then(Value::as_str).unwrap_or_default();
    let digit = |c: u8| -> Option<u32> {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        DIGITS.iter().position(|d| *d == c).map(|d| d as u32)
    };
    let first: Option<Vec<u32>> = text.bytes().take(6).map(digit).collect();
    let size = first.filter(|digits| digits.len() == 6).map(|digits| {
        let bits = digits.iter().fold(0u64, |bits, &digit| bits << 6 | u64::from(digit)); // 36, of which 32 count
        u64::from(((bits >> 4) as u32).swap_bytes())
    });
    let available = (text.len() as u64 / 4 * 3).saturating_sub(4);
    match size {
        Some(size) if size >= 4 && size % 4 == 0 && size <= available => Ok(()),
        _ => Err("its `precompiled_charsmap` is not a table of characters; was the file damaged?".into()),
    }
}

fn fixed_length(step: &Value) -> Result<(), String> {
    match step.get("length").and_then(Value::as_u64) {
        Some(0) => Err("its step `FixedLength` cuts texts into pieces of length 0".into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(part: &str, step: Value) -> String {
        check(json!({ part: step }).to_string().as_bytes()).unwrap_err()
    }

    fn template(single: Value) -> Value {
        json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": { "[CLS]": {} } })
    }

    #[test]
    fn a_template_takes_each_text_once_and_lists_its_special_tokens() {
        let (a, b) = (json!({ "Sequence": { "id": "A" } }), json!({ "Sequence": { "id": "B" } }));
        let special = |id: &str| json!({ "SpecialToken": { "id": id } });
        let good = json!({ "post_processor": template(json!([special("[CLS]"), a])) }).to_string();
        assert_eq!(check(good.as_bytes()), Ok(()));
        let within = |single: Value| json!({ "type": "Sequence", "processors": [template(single)] });
        assert!(refused("post_processor", within(json!([a, a]))).contains("more than once"));
        assert!(refused("post_processor", within(json!([a, b]))).contains("`B`"));
        assert!(refused("post_processor", within(json!([special("q"), a]))).contains("`q`"));
    }

    #[test]
    fn a_table_of_characters_is_as_long_as_it_says() {
        let map = |text: &str| json!({ "type": "Precompiled", "precompiled_charsmap": text });
        let good = json!({ "normalizer": map("BAAAAAAAAAA=") }).to_string(); // 4, and 4 bytes
        assert_eq!(check(good.as_bytes()), Ok(()));
        for bad in ["", "BAAA", "//////////////////////////////////////8=", "BQAAAAAAAAA=", "!!!!!!!!"] {
            assert!(refused("normalizer", map(bad)).contains("precompiled_charsmap"), "{bad}");
        }
    }

    #[test]
    fn replacements_do_not_double_a_text_without_end() {
        let double = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aa" });
        let many = json!({ "type": "Sequence", "normalizers": vec![double.clone(); 40] });
        assert!(refused("normalizer", many).contains("times as long"));
        let few = json!({ "normalizer": { "type": "Sequence", "normalizers": vec![double; 4] } }).to_string();
        assert_eq!(check(few.as_bytes()), Ok(()));
        assert!(refused("pre_tokenizer", json!({ "type": "FixedLength", "length": 0 })).contains("length 0"));
    }
}
