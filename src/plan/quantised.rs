//! Checkpoints whose integers are codes of weights: neither averaging their scales nor keeping one model's codes gives a model.

use super::Error;
use super::settings::Settings;
use crate::checkpoint::{Checkpoint, Kind, TensorMeta, kind};
use serde_json::Value;

/// Last parts of the names that a scheme gives to what stands beside its codes.
const MARKS: [(&str, &str); 12] = [
    ("SCB", "bitsandbytes int8"),
    ("weight_format", "bitsandbytes int8"),
    ("absmax", "bitsandbytes 4-bit"),
    ("quant_map", "bitsandbytes 4-bit"),
    ("bitsandbytes__nf4", "bitsandbytes 4-bit"),
    ("bitsandbytes__fp4", "bitsandbytes 4-bit"),
    ("qweight", "GPTQ or AWQ"),
    ("qzeros", "GPTQ or AWQ"),
    ("weight_packed", "compressed-tensors"),
    ("weight_scale_inv", "fp8 blocks"),
    ("weight_scale", "fp8 or int8"),
    ("weight_blocks", "mxfp4"),
];

/// Refuses a quantised model by the name of its scheme.
pub(super) fn refuse_quantised(model: &Checkpoint, settings: &Settings) -> Result<(), Error> {
    let Some((scheme, sign)) = scheme(model, settings) else { return Ok(()) };
    // weights of 8-bit floats are read as floats, if all of them are understood
    let understood = model.names().any(|name| model.is_coded(name))
        && model.names().all(|name| {
            model.get(name).is_none_or(|meta| kind(meta.dtype) != Kind::Unsupported && !is_code(meta))
        });
    if understood {
        return Ok(());
    }
    let reason = format!(
        "this checkpoint is quantised ({scheme}: {sign}), and its codes cannot be merged; use the model it was made from, or \
         turn it back into floats first (in transformers: `model.dequantize()`, then `save_pretrained`)"
    );
    Err(Error::Unsupported { path: model.path().to_path_buf(), reason })
}

/// What the model is quantised by, and what shows it.
fn scheme(model: &Checkpoint, settings: &Settings) -> Option<(String, String)> {
    for key in ["quantization_config", "compression_config"] {
        if let Some(config) = settings.config.get(key).filter(|value| value.is_object()) {
            let method =
                config.get("quant_method").and_then(Value::as_str).unwrap_or("a method it does not name");
            return Some((method.to_owned(), format!("its config.json has a `{key}`")));
        }
    }
    for name in model.names() {
        let last = name.rsplit('.').next().unwrap_or(name);
        if let Some((_, scheme)) = MARKS.iter().find(|(mark, _)| *mark == last) {
            return Some(((*scheme).to_owned(), format!("it has the tensor `{name}`")));
        }
        if model.get(name).is_some_and(|meta| is_code(meta) && stands_beside_scales(model, name)) {
            return Some(("integers".to_owned(), format!("`{name}` is integer, beside float scales")));
        }
    }
    None
}

/// A matrix of integers.
fn is_code(meta: &TensorMeta) -> bool {
    kind(meta.dtype) == Kind::Integer && meta.shape.len() >= 2
}

/// Whether a tensor of the same module holds scales, or the tensor itself should be a weight.
fn stands_beside_scales(model: &Checkpoint, name: &str) -> bool {
    if name.ends_with(".weight") {
        return true;
    }
    let Some((module, _)) = name.rsplit_once('.') else { return false };
    let is_scale = |other: &&str| {
        let last = other.strip_prefix(module).and_then(|rest| rest.strip_prefix('.'));
        last.is_some_and(|last| last.contains("scale") && !last.contains('.') && last != "logit_scale")
    };
    model.names().filter(is_scale).any(|other| model.get(other).is_some_and(|meta| meta.float().is_some()))
}
