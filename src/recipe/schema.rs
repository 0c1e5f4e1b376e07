//! The keys of a recipe, one function a level.

use super::cursor::{Cursor, Mapping};
use super::models::{self, Models};
use super::yaml::Node;
use super::{Error, METHODS, Overrides, Recipe, adapter, mergekit, parameters};
use crate::backend::Dtype;
use crate::linalg::Accuracy;
use serde_saphyr::NonFiniteFloatPolicy;
use std::path::{Path, PathBuf};

const TOP: [&str; 11] = [
    "merge_method",
    "base_model",
    "models",
    "parameters",
    "dtype",
    "out_dtype",
    "accuracy",
    "seed",
    "out",
    "rank",
    "compress",
];

pub(super) fn recipe(text: &str, path: &Path, overrides: &Overrides) -> Result<Recipe, Error> {
    // NaN is refused where a number is read, which can name the key.
    let options = serde_saphyr::options! { non_finite_float_policy: NonFiniteFloatPolicy::PassThrough };
    let root: Node = serde_saphyr::from_str_with_options(text, options).map_err(|e| not_yaml(&e, path))?;
    let root = Cursor { recipe: path, path: String::new(), node: &root };
    let top = root.map(&TOP)?;
    let name = method_name(&top.require("merge_method", &format!("one of {}", METHODS.join(", ")))?)?;
    let parameters = top.get("parameters").map(|p| known_parameters(&p, name)).transpose()?;
    let missing = |key: &str, why: &str| {
        let line = top.get("parameters").map(|p| p.node.line);
        Error::new(path, line, key, format!("missing: {why}"))
    };
    let method = parameters::method(name, parameters.as_ref(), overrides, missing)?;

    let folder = path.parent().unwrap_or(Path::new(""));
    let list = top.require("models", "the list of experts to merge")?;
    let base_model = base_model(&top, name, folder, &list)?;
    let mut reader = Models { folder, base: &base_model, default_weight: 1.0, notes: Vec::new() };
    if let Some(weight) = parameters.as_ref().and_then(|p| p.get("weight")) {
        reader.default_weight = weight.number()?;
    }
    let models = reader.read(&list, &method)?;
    let mut notes = reader.notes;
    notes.extend(top.ignored(&TOP));
    notes.extend(parameters.iter().flat_map(|p| p.ignored(&parameters::keys(name))));
    let either = |key| match (top.get(key), parameters.as_ref().and_then(|p| p.get(key))) {
        (Some(_), Some(second)) => Err(second.error(format!("`{key}` is given twice; give it once"))),
        (first, second) => Ok(first.or(second)),
    };
    let accuracy = either("accuracy")?.map(|c| accuracy(&c)).transpose()?;
    let seed = either("seed")?.map(|c| c.unsigned()).transpose()?;
    let adapter = adapter::out(&top, &method, &models)?;
    let out_dtype = out_dtype(&top, &mut notes)?;
    if adapter.is_some() && out_dtype.is_some_and(|dtype| dtype != Dtype::F32) {
        notes.push("an adapter is written in float32, whatever `out_dtype` says of weights".to_owned());
    }
    Ok(Recipe {
        adapter,
        path: path.to_path_buf(),
        text: text.to_owned(),
        method,
        base_model,
        models,
        accuracy: overrides.accuracy.or(accuracy).unwrap_or_default(),
        seed: overrides.seed.or(seed).unwrap_or(0),
        out_dtype,
        allow_mismatch: overrides.allow_mismatch.clone(),
        notes,
    })
}

fn not_yaml(error: &serde_saphyr::Error, path: &Path) -> Error {
    let line = error.location().map(|l| l.line());
    let text = error.without_snippet().to_string();
    // The location is given before the text; once is enough.
    let text = text.split(" at line ").next().unwrap_or(&text).to_owned();
    if text.contains("multiple YAML documents") {
        let message =
            "several YAML documents in one file are not supported in this version; write one recipe each";
        return Error::new(path, line, "", message);
    }
    Error::new(path, line, "", format!("not a valid YAML mapping: {text}"))
}

fn method_name(c: &Cursor) -> Result<&'static str, Error> {
    let given = c.text()?;
    METHODS.iter().copied().find(|name| *name == given).ok_or_else(|| {
        let known = METHODS.join(", ");
        let lower = given.to_lowercase();
        c.error(match METHODS.iter().find(|name| **name == lower) {
            Some(name) => format!("`{given}` is no method; did you mean `{name}`?"),
            None if mergekit::is_method(&lower) => {
                format!("mergekit's `{lower}` is not supported in this version; use one of {known}")
            }
            None => format!("`{given}` is no method; use one of {known}"),
        })
    })
}

/// The parameters of a method; those of another method are refused by name.
fn known_parameters<'a>(c: &Cursor<'a>, method: &str) -> Result<Mapping<'a>, Error> {
    let known = parameters::keys(method);
    let all: Vec<&str> = METHODS.iter().flat_map(|m| parameters::keys(m)).collect();
    if let Ok(map) = c.map(&all) {
        for other in METHODS {
            for key in parameters::keys(other).iter().filter(|key| !known.contains(key)) {
                if let Some(found) = map.get(key) {
                    return Err(
                        found.error(format!("merge_method {method} has no such parameter ({other} has)"))
                    );
                }
            }
        }
    }
    c.map(&known)
}

fn base_model(top: &Mapping, method: &str, folder: &Path, models: &Cursor) -> Result<PathBuf, Error> {
    if let Some(base) = top.get("base_model") {
        let path = folder.join(base.text()?);
        models::check_expanded(&base, base.text()?, &path)?;
        return Ok(path);
    }
    // mergekit's `linear` needs no base: a weighted mean is the same seen from any of its members.
    let first = match (method, models.list()?.first()) {
        ("linear", Some(first)) => first.map(&models::KEYS)?.get("model").and_then(|m| m.text().ok()),
        _ => None,
    };
    match first {
        Some(first) => Ok(folder.join(first)),
        None => top
            .require("base_model", "the model that the experts were fine-tuned from")
            .map(|_| PathBuf::new()),
    }
}

/// mergekit's `dtype` is also the output's unless `out_dtype` is given; arithmetic here is always float32.
fn out_dtype(top: &Mapping, notes: &mut Vec<String>) -> Result<Option<Dtype>, Error> {
    let dtype = top.get("dtype").map(dtype).transpose()?.flatten();
    let out = top.get("out_dtype").map(|c| self::dtype(c)).transpose()?.flatten();
    if let Some(dtype) = dtype.filter(|dtype| *dtype != Dtype::F32) {
        let out = out.unwrap_or(dtype);
        notes.push(format!("dtype: {dtype} is not used for computing, which is in float32; output is {out}"));
    }
    Ok(out.or(dtype))
}

/// A type by any of its names; none for `auto`, the base's own.
fn dtype(c: Cursor) -> Result<Option<Dtype>, Error> {
    let text = c.text()?;
    let name = match text.strip_prefix("torch.").unwrap_or(text) {
        "auto" => return Ok(None),
        "fp32" | "f32" | "float" => "float32",
        "fp16" | "f16" | "half" => "float16",
        "bf16" => "bfloat16",
        name => name,
    };
    let dtype = Dtype::from_name(name);
    dtype.map(Some).ok_or_else(|| {
        c.error(format!("one of float32, float16, bfloat16 is expected, but `{text}` is given"))
    })
}

fn accuracy(c: &Cursor) -> Result<Accuracy, Error> {
    c.choice(&[("balanced", Accuracy::Balanced), ("exact", Accuracy::Exact), ("fast", Accuracy::Fast)])
}
