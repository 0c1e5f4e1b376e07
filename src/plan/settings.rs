//! What the models' configurations say, and whether it is the same where weights depend on it.

use super::Error;
use super::family::Expert;
use crate::checkpoint::{Checkpoint, settings};
use crate::host::fs;
use indexmap::IndexMap;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The settings in a model's folder; all empty where there are none.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `config.json`.
    pub config: Value,
    /// Where that lies.
    path: PathBuf,
    /// `generation_config.json`, `tokenizer_config.json`.
    beside: [Value; 2],
    /// The chat template, wherever it stands.
    template: Option<String>,
}

/// What decides the meaning of a model's weights: the key in messages and of `--allow-mismatch`, and the keys that
/// architectures call it by.
const OF_WEIGHTS: [(&str, &[&str]); 7] = [
    ("hidden_size", &["hidden_size", "d_model", "n_embd", "dim", "embed_dim"]),
    (
        "num_attention_heads",
        &["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"],
    ),
    ("num_key_value_heads", &["num_key_value_heads", "num_kv_heads"]),
    ("head_dim", &["head_dim", "d_kv"]),
    (
        "hidden_act",
        &["hidden_act", "activation_function", "hidden_activation", "feed_forward_proj", "activation"],
    ),
    ("norm_eps", &["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"]),
    ("partial_rotary_factor", &["partial_rotary_factor", "rotary_pct", "rotary_dim"]),
];

/// What a user sets by hand after a merge if the experts' is wanted.
const OF_USE: [&str; 6] =
    ["eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id", "eos_token", "pad_token"];

impl Settings {
    /// Reads the settings beside a model's weights.
    pub fn open(model: &Checkpoint) -> Result<Settings, Error> {
        let Some(folder) = model.folder() else { return Ok(Settings::default()) };
        let path = folder.join("config.json");
        let config = read(&path)?;
        // these are only compared, so that one that cannot be read says nothing
        let beside: [Value; 2] = ["generation_config.json", "tokenizer_config.json"]
            .map(|name| settings::read(&folder.join(name)).unwrap_or_default());
        let file = folder.join("chat_template.jinja");
        let in_file = crate::files::read(&file, crate::files::SETTINGS).ok();
        let in_file = in_file.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let template = in_file.or_else(|| beside[1].get("chat_template").map(Value::to_string));
        Ok(Settings { config, path, beside, template: template.filter(|text| text != "null") })
    }

    /// `model_type`.
    pub fn model_type(&self) -> Option<&str> {
        self.config.get("model_type")?.as_str()
    }

    /// Rows of the vocabulary, at the top or in the settings of the text model.
    pub fn vocabulary(&self) -> Option<usize> {
        let at_top = self.config.get("vocab_size");
        let size = at_top.or_else(|| self.config.get("text_config")?.get("vocab_size"))?;
        usize::try_from(size.as_u64()?).ok()
    }

    /// Whether input and output embedding are one tensor: transformers' default is that they are.
    pub fn ties_embeddings(&self) -> bool {
        self.config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true)
    }

    /// Whether the model makes logits over its vocabulary.
    pub fn has_language_head(&self) -> bool {
        const HEADS: [&str; 5] =
            ["ForCausalLM", "LMHead", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining"];
        let classes = self.config.get("architectures").and_then(Value::as_array);
        let named = |class: &Value| class.as_str().is_some_and(|c| HEADS.iter().any(|head| c.contains(head)));
        classes.is_some_and(|classes| classes.iter().any(named))
    }
}

fn read(path: &Path) -> Result<Value, Error> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(Value::Null);
    }
    settings::read(path).map_err(|e| Error::BadConfig { path: path.to_path_buf(), reason: e.to_string() })
}

/// Refuses experts whose weights mean something else than the base's, except by the keys that the user insists on.
pub(super) fn weights_mean_the_same(
    base: &Settings,
    expert: &Expert,
    allowed: &[String],
) -> Result<(), Error> {
    let other = &expert.settings;
    if base.config.is_null() || other.config.is_null() {
        return Ok(());
    }
    for (key, of_base, of_expert) in differences(base, other) {
        if !allowed.contains(&key) {
            let (here, there) = (other.path.display(), base.path.display());
            let reason = format!(
                "`{key}` is {of_expert} in {here} and {of_base} in {there}, so that their weights do not mean the same; use an \
                 expert of this base, or insist with --allow-mismatch {key}"
            );
            return Err(Error::OtherSettings { expert: expert.name.clone(), reason });
        }
    }
    Ok(())
}

/// Where two configurations differ in what weights mean: the key, and both values.
fn differences(base: &Settings, other: &Settings) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let Some((a, b)) = same_level(&base.config, &other.config) else {
        let kind = |s: &Settings| s.model_type().unwrap_or("none").to_owned();
        found.push(("model_type".to_owned(), kind(base), kind(other)));
        return found;
    };
    for (key, names) in OF_WEIGHTS {
        let value =
            |config: &Value| names.iter().find_map(|n| config.get(*n).filter(|v| !v.is_null()).cloned());
        let (Some(of_base), Some(of_expert)) = (value(a), value(b)) else { continue };
        if !equal(&of_base, &of_expert) {
            found.push((key.to_owned(), of_base.to_string(), of_expert.to_string()));
        }
    }
    if let (Some(of_base), Some(of_expert)) = (theta(a), theta(b))
        && of_base != of_expert
    {
        found.push(("rope_theta".to_owned(), of_base.to_string(), of_expert.to_string()));
    }
    let (of_base, of_expert) = (rope_scaling(a), rope_scaling(b));
    if of_base != of_expert && (theta(a).is_some() || theta(b).is_some()) {
        let text = |scaling: BTreeMap<String, String>| match scaling.is_empty() {
            true => "none".to_owned(),
            false => format!("{scaling:?}"),
        };
        found.push(("rope_scaling".to_owned(), text(of_base), text(of_expert)));
    }
    let has_head = |s: &Settings| s.has_language_head() && !s.ties_embeddings();
    if base.has_language_head() && base.ties_embeddings() && has_head(other) {
        found.push(("tie_word_embeddings".to_owned(), "true".to_owned(), "false".to_owned()));
    }
    found
}

/// The two objects that describe the same kind of model: the configurations, or one of them and a part of the other (a vision
/// tower and the model of two towers). `None` if there are none.
fn same_level<'a>(a: &'a Value, b: &'a Value) -> Option<(&'a Value, &'a Value)> {
    fn kind(config: &Value) -> Option<&str> {
        config.get("model_type")?.as_str()
    }
    let (Some(of_a), Some(of_b)) = (kind(a), kind(b)) else { return Some((a, b)) };
    if of_a == of_b {
        return Some((a, b));
    }
    let part = |whole: &'a Value, whole_kind: &str, part_kind: &str| {
        let name = part_kind.strip_suffix("_model").unwrap_or(part_kind);
        let key = format!("{}_config", name.strip_prefix(whole_kind).unwrap_or(name).trim_start_matches('_'));
        let nested = whole.as_object()?.iter().filter(|(key, _)| key.ends_with("_config")).map(|(_, v)| v);
        whole.get(&key).or_else(|| nested.into_iter().find(|v| kind(v) == Some(part_kind)))
    };
    part(a, of_a, of_b).map(|part| (part, b)).or_else(|| part(b, of_b, of_a).map(|part| (a, part)))
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * a.abs().max(b.abs()),
        _ => name_of_activation(a) == name_of_activation(b),
    }
}

/// Synonyms of transformers.
fn name_of_activation(value: &Value) -> Value {
    match value.as_str() {
        Some("swish") => "silu".into(),
        Some("gelu_pytorch_tanh" | "gelu_fast") => "gelu_new".into(),
        Some("gelu_python") => "gelu".into(),
        _ => value.clone(),
    }
}

/// The base of rotary frequencies, where transformers 4 and 5 keep it.
fn theta(config: &Value) -> Option<f64> {
    let nested = config.get("rope_parameters").and_then(|rope| rope.get("rope_theta"));
    nested.or(config.get("rope_theta"))?.as_f64()
}

/// The scaling of rotary frequencies without their base; empty for none.
fn rope_scaling(config: &Value) -> BTreeMap<String, String> {
    let object = ["rope_scaling", "rope_parameters"].iter().find_map(|key| config.get(*key)?.as_object());
    let Some(object) = object else { return BTreeMap::new() };
    let kind = object.get("rope_type").or(object.get("type")).and_then(Value::as_str);
    if matches!(kind, None | Some("default")) {
        return BTreeMap::new();
    }
    let own = object.iter().filter(|(key, _)| !matches!(key.as_str(), "rope_theta" | "type" | "rope_type"));
    let number = |value: &Value| value.as_f64().map_or(value.to_string(), |x| x.to_string());
    let own = own.map(|(key, value)| (key.clone(), number(value)));
    own.chain(kind.map(|kind| ("rope_type".to_owned(), kind.to_owned()))).collect()
}

/// What a user should look at where experts are used otherwise than the base: the output has the base's files.
pub(super) fn used_otherwise(base: &Settings, experts: &[Expert]) -> Vec<String> {
    let mut names_by_keys: IndexMap<String, Vec<&str>> = IndexMap::new();
    for expert in experts {
        let keys = used_by_other_keys(base, &expert.settings);
        if !keys.is_empty() {
            names_by_keys.entry(keys.join(", ")).or_default().push(&expert.name);
        }
    }
    let note = |(keys, names): (String, Vec<&str>)| {
        format!(
            "{keys} of {} differ from the base's, which the output has; copy the expert's files if the merged model is to be used \
             as the expert is",
            names.join(", ")
        )
    };
    names_by_keys.into_iter().map(note).collect()
}

fn used_by_other_keys(base: &Settings, other: &Settings) -> Vec<String> {
    let of =
        |s: &Settings, key: &str| [&s.config, &s.beside[0], &s.beside[1]].map(|file| file.get(key).cloned());
    let differs = |key: &&&str| {
        let pairs = of(base, key).into_iter().zip(of(other, key));
        pairs.into_iter().any(|(a, b)| b.is_some_and(|b| !b.is_null() && a.as_ref() != Some(&b)))
    };
    let mut keys: Vec<String> = OF_USE.iter().filter(differs).map(|key| format!("`{key}`")).collect();
    if other.template.is_some() && other.template != base.template {
        keys.push("the chat template".to_owned());
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(config: Value) -> Settings {
        Settings { config, ..Settings::default() }
    }

    fn keys(a: Value, b: Value) -> Vec<String> {
        differences(&settings(a), &settings(b)).into_iter().map(|(key, ..)| key).collect()
    }

    #[test]
    fn what_changes_the_meaning_of_weights_is_named() {
        let base = json!({"model_type": "llama", "num_attention_heads": 4, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "rope_theta": 10000.0});
        assert!(keys(base.clone(), base.clone()).is_empty());
        let mut other = base.clone();
        other["num_attention_heads"] = 8.into();
        other["rms_norm_eps"] = 1e-5.into();
        other["rope_theta"] = 500_000.into();
        other["hidden_act"] = "swish".into(); // silu by another name
        assert_eq!(keys(base.clone(), other), ["num_attention_heads", "norm_eps", "rope_theta"]);
        assert_eq!(keys(base, json!({"model_type": "mistral"})), ["model_type"]);
    }

    #[test]
    fn old_and_new_spellings_of_rotary_settings_are_one() {
        let old = json!({"model_type": "llama", "rope_theta": 500000.0,
            "rope_scaling": {"type": "linear", "factor": 4}});
        let new = json!({"model_type": "llama",
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}});
        assert!(keys(old.clone(), new.clone()).is_empty());
        let plain = json!({"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}});
        assert_eq!(keys(new, plain), ["rope_scaling"]);
    }

    #[test]
    fn a_tower_is_held_against_its_part_of_the_whole() {
        let whole =
            json!({"model_type": "clip", "vision_config": {"num_attention_heads": 4}, "text_config": {}});
        let tower = |heads: u32| json!({"model_type": "clip_vision_model", "num_attention_heads": heads});
        assert!(keys(whole.clone(), tower(4)).is_empty());
        assert_eq!(keys(tower(8), whole), ["num_attention_heads"]);
    }
}
