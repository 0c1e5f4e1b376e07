//! PEFT's folders: `adapter_config.json`, and `adapter_model.safetensors` with a key a factor.

use super::settings::Settings;
use super::targets::{Factors, Kind, Targets};
use super::{Adapter, bad};
use crate::checkpoint::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint, Error, PEFT_PREFIX, weights_file};
use crate::host::PathExt;
use indexmap::IndexMap;
use serde_json::Value;
use std::path::Path;

/// Parts of keys by which other methods, and parts of LoRA that are not read, are known.
pub(super) const REFUSED: [(&str, &str); 16] = [
    ("lora_magnitude_vector", "DoRA"),
    ("dora_scale", "DoRA"),
    ("hada_w1_a", "LoHa"),
    ("hada_w1_b", "LoHa"),
    ("hada_w2_a", "LoHa"),
    ("hada_w2_b", "LoHa"),
    ("hada_t1", "LoHa"),
    ("hada_t2", "LoHa"),
    ("lokr_w1", "LoKr"),
    ("lokr_w2", "LoKr"),
    ("lokr_t2", "LoKr"),
    ("ia3_l", "IA3"),
    ("lora_E", "AdaLoRA"),
    ("oft_", "OFT"),
    ("vera_lambda", "VeRA"),
    ("trainable_tokens", "single trained rows of an embedding"),
];

/// A folder with settings of an adapter and no model: where both lie together, the folder is the model's.
pub(super) fn is_one(path: &Path) -> bool {
    let is_model =
        || weights_file(path).is_some_and(|file| file.leads_to_file() && !file.ends_with(ADAPTER_WEIGHTS));
    path.join(ADAPTER_CONFIG).leads_to_file() && !is_model()
}

/// Opens the adapter in a folder.
pub(super) fn open(path: &Path, base: &Checkpoint, config: &Value) -> Result<Adapter, Error> {
    let settings = Settings::open(&path.join(ADAPTER_CONFIG))?;
    let weights = path.join(ADAPTER_WEIGHTS);
    if !weights.leads_to_file() {
        let pickled = path.join("adapter_model.bin").leads_to_file();
        let what = if pickled {
            "it holds a pickle, adapter_model.bin"
        } else {
            "it has no adapter_model.safetensors"
        };
        return Err(bad(path, format!("{what}; load it with PEFT and `save_pretrained` it as safetensors")));
    }
    let file = Checkpoint::open(&weights)?;
    let (factors, saved) = sorted(&file)?;
    let targets = Targets::new(base, config, settings.fan_in_fan_out);
    let scale = |module: &str, r| settings.scale(module, r);
    let mut adapter = targets.adapter(path, file, &factors, &saved, &settings.target_parameters, &scale)?;
    adapter.base = settings.base;
    Ok(adapter)
}

/// The modules of an adapter with their factors, and its whole tensors: the name, and the key.
type Sorted = (Vec<Factors>, Vec<(String, String)>);

fn sorted(file: &Checkpoint) -> Result<Sorted, Error> {
    let mut pairs: IndexMap<(String, Kind), [Option<String>; 2]> = IndexMap::new();
    let mut saved = Vec::new();
    for key in file.names() {
        if let Some((_, what)) =
            REFUSED.iter().find(|(mark, _)| key.split('.').any(|part| part.starts_with(mark)))
        {
            return Err(unread(file, key, what));
        }
        match factor(key) {
            Some(Part::Factor(module, kind, place)) => {
                pairs.entry((module, kind)).or_default()[place] = Some(key.to_owned())
            }
            Some(Part::Bias) => return Err(unread(file, key, "a bias beside the factors")),
            None => saved.push((whole(key), key.to_owned())),
        }
    }
    let factors = pairs.into_iter().map(|((module, kind), pair)| match pair {
        [Some(a), Some(b)] => Ok(Factors { module, kind, a, b, alpha: None }),
        [Some(only), None] | [None, Some(only)] => Err(bad(
            file.path(),
            format!("it has `{only}` without the other factor; it is incomplete, so save it again"),
        )),
        [None, None] => Err(bad(file.path(), format!("`{module}` has no factors"))),
    });
    Ok((factors.collect::<Result<_, _>>()?, saved))
}

pub(super) fn unread(file: &Checkpoint, key: &str, what: &str) -> Error {
    let advice = "merge the adapter into its base first (in PEFT: `merge_and_unload`) and give that model";
    bad(file.path(), format!("its tensor `{key}` belongs to {what}, which is not read here; {advice}"))
}

/// What a key stands for.
enum Part {
    /// `A` (0) or `B` (1) of a module.
    Factor(String, Kind, usize),
    /// What is added to outputs.
    Bias,
}

/// Names of factors.
const FACTORS: [(&str, Kind, usize); 4] = [
    ("lora_A", Kind::Linear, 0),
    ("lora_B", Kind::Linear, 1),
    ("lora_embedding_A", Kind::Embedding, 0),
    ("lora_embedding_B", Kind::Embedding, 1),
];

/// `MODULE.lora_A.weight`, with the adapter's name before `weight` in files that were not written by `save_pretrained`; none for
/// any other key.
fn factor(key: &str) -> Option<Part> {
    let key = key.strip_prefix(PEFT_PREFIX).unwrap_or(key);
    let (module, kind, place, rest) = FACTORS.iter().find_map(|&(name, kind, place)| {
        let (module, rest) = key.split_once(&format!(".{name}"))?;
        (rest.is_empty() || rest.starts_with('.')).then_some((module, kind, place, rest))
    })?;
    Some(if rest.ends_with(".bias") { Part::Bias } else { Part::Factor(module.to_owned(), kind, place) })
}

/// The tensor of the model that a key holds whole: `MODULE.weight`, or `MODULE.base_layer.weight` of an embedding that is trained
/// too.
fn whole(key: &str) -> String {
    let name = key.strip_prefix(PEFT_PREFIX).unwrap_or(key);
    name.replace(".modules_to_save.default.", ".")
        .replace(".modules_to_save.", ".")
        .replace(".base_layer.", ".")
}
