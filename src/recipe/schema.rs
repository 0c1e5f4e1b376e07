//! The keys of a recipe, one function a level.

use super::cursor::{Cursor, Mapping};
use super::yaml::Node;
use super::{Calibration, Error, METHODS, Method, Model, Overrides, Recipe, Source, parameters};
use crate::backend::Dtype;
use crate::linalg::Accuracy;
use serde_saphyr::NonFiniteFloatPolicy;
use std::path::{Path, PathBuf};

const TOP: [&str; 8] =
    ["merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "accuracy", "seed"];

const MODEL: [&str; 6] = ["model", "name", "calibration", "weight", "task", "parameters"];

/// Samples captured where a recipe names data but no number.
const SAMPLES: usize = 32;

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
    let either = |key| match (top.get(key), parameters.as_ref().and_then(|p| p.get(key))) {
        (Some(_), Some(second)) => Err(second.error(format!("`{key}` is given twice; give it once"))),
        (first, second) => Ok(first.or(second)),
    };
    let accuracy = either("accuracy")?.map(|c| accuracy(&c)).transpose()?;
    let seed = either("seed")?.map(|c| c.unsigned()).transpose()?;
    Ok(Recipe {
        path: path.to_path_buf(),
        text: text.to_owned(),
        method,
        base_model,
        models,
        accuracy: overrides.accuracy.or(accuracy).unwrap_or_default(),
        seed: overrides.seed.or(seed).unwrap_or(0),
        out_dtype: out_dtype(&top, &mut notes)?,
        notes,
    })
}

fn not_yaml(error: &serde_saphyr::Error, path: &Path) -> Error {
    let line = error.location().map(|l| l.line());
    let text = error.without_snippet().to_string();
    // The location is given before the text; once is enough.
    let text = text.split(" at line ").next().unwrap_or(&text).to_owned();
    Error::new(path, line, "", format!("not a valid YAML mapping: {text}"))
}

fn method_name(c: &Cursor) -> Result<&'static str, Error> {
    let given = c.text()?;
    METHODS.iter().copied().find(|name| *name == given).ok_or_else(|| {
        c.error(format!("`{given}` is not supported in this version; use one of {}", METHODS.join(", ")))
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
        return Ok(folder.join(base.text()?));
    }
    // mergekit's `linear` needs no base: a weighted mean is the same seen from any of its members.
    let first = match (method, models.list()?.first()) {
        ("linear", Some(first)) => first.map(&MODEL)?.get("model").and_then(|m| m.text().ok()),
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
    let read = |c: Cursor| {
        Dtype::from_name(c.text()?).ok_or_else(|| c.error("one of float32, float16, bfloat16 is expected"))
    };
    let dtype = top.get("dtype").map(read).transpose()?;
    let out = top.get("out_dtype").map(read).transpose()?;
    match (dtype, out) {
        (None | Some(Dtype::F32), out) => Ok(out),
        (Some(dtype), out) => {
            let out = out.unwrap_or(dtype);
            notes.push(format!(
                "dtype: {dtype} is not used for computing, which is in float32; output is {out}"
            ));
            Ok(Some(out))
        }
    }
}

fn accuracy(c: &Cursor) -> Result<Accuracy, Error> {
    c.choice(&[("balanced", Accuracy::Balanced), ("exact", Accuracy::Exact), ("fast", Accuracy::Fast)])
}

/// Reads `models`.
struct Models<'a> {
    folder: &'a Path,
    base: &'a Path,
    default_weight: f64,
    notes: Vec<String>,
}

impl Models<'_> {
    fn read(&mut self, list: &Cursor, method: &Method) -> Result<Vec<Model>, Error> {
        let mut models: Vec<Model> = Vec::new();
        for c in list.list()? {
            let model = self.model(&c)?;
            if !matches!(method, Method::Linear { .. }) && model.source.path() == self.base {
                // mergekit lists the base among the models and leaves it out of the sum.
                if matches!(method, Method::TaskArithmetic { .. }) {
                    self.notes
                        .push(format!("{} is the base model; its delta is zero, so it is left out", c.path));
                    continue;
                }
                return Err(c.error("this is the base model itself; leave it out of `models`"));
            }
            if let Some(twin) = models.iter().position(|m| m.name == model.name) {
                return Err(c.error(format!(
                    "`{}` is also the name of models[{twin}]; give one of them another `name`",
                    model.name
                )));
            }
            check_model(&c, &model, method)?;
            models.push(model);
        }
        if models.is_empty() {
            return Err(list.error("at least one expert is needed"));
        }
        check_models(list, &models, method)?;
        Ok(models)
    }

    fn model(&self, c: &Cursor) -> Result<Model, Error> {
        let map = c.map(&MODEL)?;
        let source = self.source(&map.require("model", "the path of the expert")?)?;
        let weights = (map.get("weight"), map.get("parameters").map(|p| p.map(&["weight"])).transpose()?);
        let weight = match weights {
            (Some(_), Some(p)) if p.get("weight").is_some() => {
                return Err(c.error("`weight` is given twice; give it once"));
            }
            (own, p) => own.or(p.and_then(|p| p.get("weight"))),
        };
        Ok(Model {
            name: match map.get("name") {
                Some(name) => name.text()?.to_owned(),
                None => default_name(source.path()),
            },
            source,
            weight: weight.map(|w| w.number()).transpose()?.unwrap_or(self.default_weight),
            calibration: map
                .get("calibration")
                .map(|c| self.calibration(&c))
                .transpose()?
                .unwrap_or(Calibration::Unset),
            task: map.get("task").map(|t| t.text().map(|t| self.folder.join(t))).transpose()?,
        })
    }

    /// A path, `{delta: FILE}`, or `BASE+delta:FILE`.
    fn source(&self, c: &Cursor) -> Result<Source, Error> {
        if c.is_map() {
            let delta = c.map(&["delta"])?.require("delta", "the file of deltas")?;
            return Ok(Source::Delta(self.folder.join(delta.text()?)));
        }
        let text = c.text()?;
        let Some((base, delta)) = text.split_once("+delta:") else {
            return self.checkpoint(c, text);
        };
        if self.folder.join(base) != self.base {
            return Err(c.error(format!("`{base}` is not the base_model; a delta is added to that")));
        }
        Ok(Source::Delta(self.folder.join(delta)))
    }

    fn checkpoint(&self, c: &Cursor, text: &str) -> Result<Source, Error> {
        let path = self.folder.join(text);
        if text.contains('+') && !path.exists() {
            return Err(c.error(
                "no such path; `model+adapter` (LoRA adapters) is not supported in this version: merge the adapter \
                 into its model first",
            ));
        }
        Ok(Source::Checkpoint(path))
    }

    fn calibration(&self, c: &Cursor) -> Result<Calibration, Error> {
        if c.is_map() {
            let map = c.map(&["data", "samples"])?;
            let data = self.folder.join(map.require("data", "the task file to run the expert on")?.text()?);
            let samples = map.get("samples").map(|s| Ok((s.clone(), s.unsigned()?))).transpose()?;
            let samples = match samples {
                None => SAMPLES,
                Some((c, 0)) => return Err(c.error("at least one sample is needed")),
                Some((_, n)) => n as usize,
            };
            return Ok(Calibration::Data { data, samples });
        }
        Ok(match c.text()? {
            "none" => Calibration::None,
            file => Calibration::File(self.folder.join(file)),
        })
    }
}

/// The last part of the path, without the endings of weight files.
fn default_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let name = name.strip_suffix(".safetensors").unwrap_or(&name);
    name.strip_suffix(".delta").unwrap_or(name).to_owned()
}

fn check_model(c: &Cursor, model: &Model, method: &Method) -> Result<(), Error> {
    let weighted = matches!(method, Method::Linear { .. } | Method::TaskArithmetic { .. });
    if !weighted && model.weight != 1.0 {
        let name = method.name();
        return Err(c.error(format!("merge_method {name} takes no weights; leave out `weight`")));
    }
    if matches!(method, Method::Esm(_)) && model.calibration == Calibration::Unset {
        return Err(c.error(format!(
            "merge_method {} needs `calibration`, a file of the expert's layer inputs; for esm `calibration: none` on \
             every model asks for the data-free form",
            method.name()
        )));
    }
    if method.experts().is_some() {
        check_expert(c, model)?;
    }
    Ok(())
}

/// An expert of ESM++ becomes a folder of its name, and samples are routed to it by the inputs it has seen.
fn check_expert(c: &Cursor, model: &Model) -> Result<(), Error> {
    if model.calibration == Calibration::None {
        return Err(c.error(
            "merge_method esm++ routes by the means of layer inputs, so that `calibration: none` is not enough; give a \
             calibration file",
        ));
    }
    let unfit = |ch: char| ch.is_control() || "/\\:*?\"<>|".contains(ch);
    if model.name.starts_with('.') || model.name.contains(unfit) {
        return Err(c.error(format!(
            "`{}` cannot name the folder of an adapter; give the expert a `name` without a leading dot and without \
             / \\ : * ? \" < > |",
            model.name
        )));
    }
    Ok(())
}

fn check_models(c: &Cursor, models: &[Model], method: &Method) -> Result<(), Error> {
    if matches!(method, Method::Esm(_)) {
        let none = |m: &Model| m.calibration == Calibration::None;
        if let (Some(without), Some(with)) =
            (models.iter().find(|m| none(m)), models.iter().find(|m| !none(m)))
        {
            return Err(c.error(format!(
                "`{}` has a calibration and `{}` has `calibration: none`; the data-free form needs none on every model",
                with.name, without.name
            )));
        }
    }
    let normalized = matches!(
        method,
        Method::Linear { normalize: true, .. } | Method::TaskArithmetic { normalize: true, .. }
    );
    if normalized && models.iter().map(|m| m.weight).sum::<f64>() == 0.0 {
        return Err(
            c.error("the weights sum to 0, so they cannot be divided by their sum; set `normalize: false`")
        );
    }
    Ok(())
}
