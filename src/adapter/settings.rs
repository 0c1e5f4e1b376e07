//! `adapter_config.json` of PEFT: what is read of it, what changes nothing here, and what is refused because it would be lost.

use super::{Named, bad};
use crate::checkpoint::{Error, settings};
use regex::Regex;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What the settings say of factors.
#[derive(Debug)]
pub(super) struct Settings {
    path: PathBuf,
    r: u64,
    lora_alpha: f64,
    use_rslora: bool,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    /// Whether weights are stored as `d_in x d_out`.
    pub fan_in_fan_out: bool,
    /// Parameters that factors are added to, as endings of their names.
    pub target_parameters: Vec<String>,
    /// `base_model_name_or_path`
    pub base: Named,
}

/// Keys that are read.
const READ: [&str; 9] = [
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "target_parameters",
    "base_model_name_or_path",
];

/// Keys that change nothing of what an adapter adds to its base: how it was trained, begun and loaded.
const WITHOUT_EFFECT: [&str; 20] = [
    "task_type",
    "auto_mapping",
    "inference_mode",
    "revision",
    "peft_version",
    "target_modules", // the file's keys say which they were
    "modules_to_save",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "lora_dropout",
    "init_lora_weights", // but for some of its values
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
];

/// Keys that change what is added, and what they stand for.
const REFUSED: [(&str, &str); 12] = [
    ("use_dora", "DoRA"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("lora_bias", "a bias beside the factors"),
    ("trainable_token_indices", "single trained rows of an embedding"),
    ("layer_replication", "replicated layers"),
    ("alora_invocation_tokens", "aLoRA, which acts on some tokens only"),
    ("arrow_config", "Arrow, which routes between adapters"),
    ("monteclora_config", "MonteCLoRA"),
    ("velora_config", "VeLoRA"),
    ("kasa_config", "KaSA"),
    ("ensure_weight_tying", "adapters shared by tied layers"),
];

/// Beginnings of `init_lora_weights` that change the base itself before training.
const CHANGE_THE_BASE: [(&str, &str); 5] =
    [("pissa", "PiSSA"), ("olora", "OLoRA"), ("corda", "CorDA"), ("lora_ga", "LoRA-GA"), ("loftq", "LoftQ")];

impl Settings {
    /// Reads and checks the settings.
    pub fn open(path: &Path) -> Result<Settings, Error> {
        let object: Map<String, Value> = settings::read(path)
            .map_err(|e| bad(path, format!("it is not the configuration of an adapter ({e})")))?;
        refuse(path, &object)?;
        let reader = Reader { path, object: &object };
        let r = reader.number("r", Some(8.0))?;
        if !(r >= 1.0 && r.fract() == 0.0) {
            return Err(bad(path, format!("`r` is {r}, but a rank is a whole number from 1")));
        }
        Ok(Settings {
            path: path.to_path_buf(),
            r: r as u64,
            lora_alpha: reader.number("lora_alpha", Some(8.0))?,
            use_rslora: reader.switch("use_rslora"),
            rank_pattern: reader.pattern("rank_pattern")?,
            alpha_pattern: reader.pattern("alpha_pattern")?,
            fan_in_fan_out: reader.switch("fan_in_fan_out"),
            target_parameters: reader.words("target_parameters"),
            base: Named(object.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned)),
        })
    }

    /// What a module's product is multiplied by: `lora_alpha / r`, or `lora_alpha / sqrt(r)` by rsLoRA. `r` is the rank of its
    /// factors.
    pub fn scale(&self, module: &str, r: usize) -> Result<f64, Error> {
        let of_pattern = |pattern: &[(Regex, f64)]| {
            pattern.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| *value)
        };
        let stated = of_pattern(&self.rank_pattern).unwrap_or(self.r as f64);
        if stated != r as f64 {
            return Err(bad(
                &self.path,
                format!(
                    "it says that the factors of `{module}` have rank {stated} (`r`, `rank_pattern`), but in the file they have rank \
                     {r}, so that their scale is not known; restore the file that belongs to these weights"
                ),
            ));
        }
        let alpha = of_pattern(&self.alpha_pattern).unwrap_or(self.lora_alpha);
        Ok(alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 })
    }
}

/// Refuses other kinds of adapters, and settings by which something would be lost.
fn refuse(path: &Path, object: &Map<String, Value>) -> Result<(), Error> {
    let advice = "merge it into its base first (in PEFT: `merge_and_unload`) and give that model";
    match object.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        Some(other) => {
            return Err(bad(
                path,
                format!("this is an adapter of the kind {other}, and only LORA is read; {advice}"),
            ));
        }
        None => return Err(bad(path, "it has no `peft_type`, so it is not the configuration of an adapter")),
    }
    for (key, value) in object.iter().filter(|(_, value)| !is_off(value)) {
        if let Some((_, what)) = REFUSED.iter().find(|(refused, _)| refused == key) {
            return Err(bad(path, format!("`{key}` ({what}) is not read here; {advice}")));
        }
        if !READ.contains(&key.as_str()) && !WITHOUT_EFFECT.contains(&key.as_str()) && key != "bias" {
            return Err(bad(
                path,
                format!(
                    "the setting `{key}: {value}` is not known here, so that what it adds might be lost; {advice}"
                ),
            ));
        }
    }
    match object.get("bias").and_then(Value::as_str) {
        None | Some("none") => {}
        Some(bias) => {
            return Err(bad(path, format!("`bias: {bias}` (trained biases) is not read here; {advice}")));
        }
    }
    let init = object.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default().to_lowercase();
    match CHANGE_THE_BASE.iter().find(|(start, _)| init.starts_with(start)) {
        None => Ok(()),
        Some((_, what)) => Err(bad(
            path,
            format!(
                "`init_lora_weights: {init}` ({what}) has changed the base itself, so that the factors do not fit the one that was \
                 downloaded; save the adapter again with `path_initial_model_for_weight_conversion`, or {advice}"
            ),
        )),
    }
}

/// Whether a setting is as good as left out.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

struct Reader<'a> {
    path: &'a Path,
    object: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn number(&self, key: &str, default: Option<f64>) -> Result<f64, Error> {
        let value = self.object.get(key).filter(|value| !value.is_null());
        let number = value.map_or(default, Value::as_f64).filter(|number| number.is_finite());
        number.ok_or_else(|| bad(self.path, format!("`{key}` is no number")))
    }

    fn switch(&self, key: &str) -> bool {
        self.object.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A list of words; a single one may stand without the list.
    fn words(&self, key: &str) -> Vec<String> {
        match self.object.get(key) {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::String(word)) => vec![word.clone()],
            _ => Vec::new(),
        }
    }

    /// Numbers by module: a key is a regular expression for the end of a module's path, and the first that fits counts.
    fn pattern(&self, key: &str) -> Result<Vec<(Regex, f64)>, Error> {
        let entries = self.object.get(key).and_then(Value::as_object).into_iter().flatten();
        let entry = |(module, value): (&String, &Value)| {
            let regex = Regex::new(&format!(r"^(.*\.)?({module})$"));
            let regex = regex.map_err(|_| {
                bad(
                    self.path,
                    format!(
                        "`{key}` has the key `{module}`, which is no regular expression that is read here"
                    ),
                )
            })?;
            let number = value.as_f64().filter(|number| number.is_finite());
            Ok((regex, number.ok_or_else(|| bad(self.path, format!("`{key}.{module}` is no number")))?))
        };
        entries.map(entry).collect()
    }
}
