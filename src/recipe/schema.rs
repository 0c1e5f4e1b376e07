//! The keys of a recipe, one function a level.

use super::cursor::{Cursor, Mapping};
use super::mergekit::{Foreign, foreign};
use super::models::{self, Models};
use super::paths::Paths;
use super::settings::Settings;
use super::slices::{Place, Slice, SliceSource, Slices};
use super::yaml::Node;
use super::{
    Alpha, Error, Method, Module, Overrides, Recipe, adapter, heads, modules, parameters, tokenizer,
};
use crate::backend::Dtype;
use crate::hub::{Gap, Missing};
use crate::linalg::Accuracy;
use crate::method::table::{self, Base, Calibration, Default, Parameter};
use crate::method::{Description, methods};
use serde_saphyr::NonFiniteFloatPolicy;
use std::cell::RefCell;
use std::path::{Path, PathBuf};

const TOP: [&str; 18] = [
    "name",
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "accuracy",
    "seed",
    "out",
    "rank",
    "compress",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "heads",
];

pub(super) fn recipe(text: &str, path: &Path, overrides: &Overrides) -> Result<Recipe, Error> {
    let missing = RefCell::default();
    let recipe = read(text, path, overrides, &missing);
    let missing = missing.into_inner();
    let recipe = recipe.and_then(|recipe| match missing.iter().find(|missing| missing.gap != Gap::Absent) {
        Some(incomplete) => Err(Error::new(path, None, "", incomplete.to_string())),
        None => Ok(recipe),
    });
    match recipe {
        Ok(recipe) => Ok(Recipe { missing, ..recipe }),
        Err(error) => Err(error.with_missing(missing)),
    }
}

fn read(
    text: &str,
    path: &Path,
    overrides: &Overrides,
    absent: &RefCell<Vec<Missing>>,
) -> Result<Recipe, Error> {
    // NaN is refused where a number is read, which can name the key.
    let options = serde_saphyr::options! { non_finite_float_policy: NonFiniteFloatPolicy::PassThrough };
    let root: Node = serde_saphyr::from_str_with_options(text, options).map_err(|e| not_yaml(&e, path))?;
    let root = Cursor { recipe: path, path: String::new(), node: &root };
    let top = root.map(&TOP)?;
    let known: Vec<&str> = table::names().collect();
    let why = format!("one of {} (`esmerge methods` explains them)", known.join(", "));
    let named = top.require("merge_method", &why)?;
    let description = method_named(&named)?;
    let parameters = top.get("parameters").map(|p| known_parameters(&p, description)).transpose()?;
    let missing = |key: &str, why: &str| {
        let line = top.get("parameters").map(|p| p.node.line);
        Error::new(path, line, key, format!("missing: {why}"))
    };
    let has_base = top.get("base_model").is_some();
    let strength = adapter::strength(&top, description.name)?;
    let mut method =
        parameters::method(description, has_base, parameters.as_ref(), overrides, strength, missing)?;

    let folder = path.parent().unwrap_or(Path::new(""));
    let paths = Paths { folder, made: &overrides.made, missing: absent };
    let mut modules = Vec::new();
    let (list, base_model, slices, models, mut notes) = match given(&top)? {
        Given::Modules(list, first) => {
            let base_model = base_model(&top, description, paths, &first)?;
            let mut reader = Models { paths, base: &base_model, notes: Vec::new() };
            let models;
            (modules, models) = modules::read(&list, &method, &mut reader)?;
            let notes = reader.notes;
            (list, base_model, Vec::new(), models, notes)
        }
        Given::Slices(list, module) => {
            if let (Some(map), Method::Tabled(tabled)) = (&module, &mut method) {
                tabled.settings.extend(modules::of_module(map, &Method::Tabled(tabled.clone()))?);
            }
            if !matches!(method, Method::Tabled(_)) || description.is_calibrated() {
                return Err(
                    list.error(format!("merge_method {} takes whole models, under `models`", method.name()))
                );
            }
            let base =
                top.get("base_model").map(|base| base.text().map(|base| paths.find(base))).transpose()?;
            let (slices, models) = Slices { paths, method: description, base: base.clone() }.read(&list)?;
            let first = slices.first().map(|slice| slice.base.0.clone()).unwrap_or_default();
            (list, base.unwrap_or(first), slices, models, Vec::new())
        }
        Given::Models(list) => {
            let base_model = base_model(&top, description, paths, &list)?;
            let mut reader = Models { paths, base: &base_model, notes: Vec::new() };
            let models = reader.read(&list, &method)?;
            let notes = reader.notes;
            (list, base_model, Vec::new(), models, notes)
        }
    };
    if let (false, Alpha::Search { .. }) = (slices.is_empty(), method.alpha()) {
        return Err(list.error("alpha cannot be searched for a model of slices; give a number"));
    }
    let tokenizer = tokenizer::tokenizer(&top, paths)?;
    if let (Some(_), Alpha::Search { .. }) = (&tokenizer, method.alpha()) {
        return Err(list.error(
            "alpha cannot be searched where a tokenizer is asked for; give a number, or leave `tokenizer_source` and `tokenizer` out",
        ));
    }
    if let (Some(_), Calibration::OfMerged) = (&tokenizer, description.calibration) {
        return Err(list.error(format!(
            "merge_method {} runs the model that is being made with the base's tokens; leave `tokenizer_source` and `tokenizer` out",
            description.name
        )));
    }
    notes.extend(top.ignored(&TOP));
    notes.extend(parameters.iter().flat_map(|p| p.ignored(&description.keys())));
    for parameter in description.parameters.iter().filter(|p| p.default == Default::Required) {
        let given = parameters.as_ref().is_some_and(|p| p.get(parameter.name).is_some())
            || parameter.of_models && models.iter().all(|model| model.settings.contains_key(parameter.name))
            || !slices.is_empty() && slices.iter().all(|slice| has(slice, parameter))
            || !modules.is_empty() && modules.iter().all(|module| module_has(module, parameter));
        if !given {
            let why = format!(
                "{} ({}); see `esmerge methods {}`",
                parameter.help, parameter.form, description.name
            );
            return Err(missing(&format!("parameters.{}", parameter.name), &why));
        }
    }
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
    let recipe = Recipe {
        adapter,
        heads: heads::read(&top, adapter)?,
        path: path.to_path_buf(),
        text: text.to_owned(),
        method,
        base_model,
        models,
        slices,
        modules,
        accuracy: overrides.accuracy.or(accuracy).unwrap_or_default(),
        seed: overrides.seed.or(seed).unwrap_or(0),
        out_dtype,
        tokenizer,
        chat_template: top.get("chat_template").map(|c| tokenizer::chat_template(&c)).transpose()?.flatten(),
        allow_mismatch: overrides.allow_mismatch.clone(),
        notes,
        missing: Vec::new(),
    };
    recipe.check(&list)?;
    Ok(recipe)
}

/// Whether a slice gives a parameter, for all models or for each.
fn has(slice: &Slice, parameter: &Parameter) -> bool {
    let own = |source: &SliceSource| source.settings.contains_key(parameter.name);
    slice.settings.contains_key(parameter.name) || parameter.of_models && slice.sources.iter().all(own)
}

/// Whether a module gives a parameter, for all models or for each, or merges nothing.
fn module_has(module: &Module, parameter: &Parameter) -> bool {
    let of_models = |models: &Vec<Settings>| models.iter().all(|own| own.contains_key(parameter.name));
    module.settings.contains_key(parameter.name)
        || module.models.as_ref().is_none_or(|models| parameter.of_models && of_models(models))
}

impl Recipe {
    /// Parameters that do not go together, as far as they are the same for all tensors.
    fn check(&self, models: &Cursor) -> Result<(), Error> {
        let Some(tabled) = self.method.tabled() else { return Ok(()) };
        let values = self.values(tabled, "", Place::default());
        if self.method.elementwise().is_none() {
            return self.decomposed(&values).map(drop).map_err(|why| models.error(why));
        }
        if !values.of_models("weight").iter().map(|weight| weight.abs()).sum::<f64>().is_finite() {
            return Err(models.error("the weights are too large to be summed"));
        }
        self.streamed(Some(&values)).map(drop).map_err(|why| models.error(why))
    }
}
/// What is to be merged.
enum Given<'a> {
    /// A list of models.
    Models(Cursor<'a>),
    /// Ranges of layers, and the module that has them, if the recipe names it.
    Slices(Cursor<'a>, Option<Mapping<'a>>),
    /// Modules, and the models of the first.
    Modules(Cursor<'a>, Cursor<'a>),
}

fn given<'a>(top: &Mapping<'a>) -> Result<Given<'a>, Error> {
    let Some(modules) = top.get("modules") else {
        return match (top.get("models"), top.get("slices")) {
            (Some(_), Some(slices)) => Err(slices.error("either `models` or `slices` is given, not both")),
            (None, Some(slices)) => Ok(Given::Slices(slices, None)),
            _ => top.require("models", "the list of experts to merge").map(Given::Models),
        };
    };
    if let Some(other) = top.get("models").or(top.get("slices")) {
        return Err(other.error("either `models`, `slices` or `modules` is given, not several"));
    }
    let entries = modules.entries()?;
    let Some((_, first)) = entries.first() else {
        return Err(modules.error("at least one module is expected, such as {default: {models: [...]}}"));
    };
    let map = modules::keys(first)?;
    match (map.get("models"), map.get("slices")) {
        (Some(_), Some(slices)) => Err(slices.error("either `models` or `slices` is given, not both")),
        (None, Some(slices)) if entries.len() == 1 => Ok(Given::Slices(slices, Some(map))),
        (models, slices) => {
            let first =
                models.or(slices).map_or_else(|| map.require("models", "the models of the module"), Ok)?;
            Ok(Given::Modules(modules, first))
        }
    }
}

fn not_yaml(error: &serde_saphyr::Error, path: &Path) -> Error {
    let line = error.location().map(|l| l.line());
    let text = error.without_snippet().to_string();
    // The location is given before the text; once is enough.
    let text = text.split(" at line ").next().unwrap_or(&text).to_owned();
    if text.contains("multiple YAML documents") {
        let message =
            "several documents are one merge after the other, which `esmerge merge` alone carries out";
        return Error::new(path, line, "", message);
    }
    Error::new(path, line, "", format!("not a valid YAML mapping: {text}"))
}

fn method_named(c: &Cursor) -> Result<&'static Description, Error> {
    /// Similarity (Jaro and Winkler) from which a name is taken for a slip of another.
    const LIKE: f64 = 0.85;
    let given = c.text()?;
    table::find(given).ok_or_else(|| {
        let similarity = |method: &&Description| strsim::jaro_winkler(&given.to_lowercase(), method.name);
        let nearest = methods().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        c.error(match nearest.filter(|nearest| similarity(nearest) >= LIKE) {
            Some(nearest) => format!("`{given}` is no method; did you mean `{}`?", nearest.name),
            None => {
                let known: Vec<&str> = table::names().collect();
                format!(
                    "`{given}` is no method; use one of {} (`esmerge methods` explains them)",
                    known.join(", ")
                )
            }
        })
    })
}

/// The parameters of a method; those of another method are refused by name.
fn known_parameters<'a>(c: &Cursor<'a>, method: &Description) -> Result<Mapping<'a>, Error> {
    let known = method.keys();
    let all: Vec<&str> = methods().flat_map(Description::keys).collect();
    if let Ok(map) = c.map(&all) {
        for other in methods() {
            for key in other.keys().iter().filter(|key| !known.contains(key)) {
                // a few keys of mergekit are said of any method there, and change nothing here
                let harmless = matches!(foreign(key), Some(Foreign::Harmless(_)));
                if let Some(found) = map.get(key).filter(|_| !harmless) {
                    let (method, other) = (method.name, other.name);
                    return Err(
                        found.error(format!("merge_method {method} has no such parameter ({other} has)"))
                    );
                }
            }
        }
    }
    c.map(&known)
}

fn base_model(top: &Mapping, method: &Description, paths: Paths, models: &Cursor) -> Result<PathBuf, Error> {
    if let Some(base) = top.get("base_model") {
        let path = paths.find(base.text()?);
        models::check_expanded(&base, base.text()?, &path)?;
        return Ok(path);
    }
    // where no differences are merged, the sum of models is the same seen from any of them
    let first = match (method.base, models.list()?.first()) {
        (Base::Member | Base::Optional, Some(first)) => {
            let model = first.map(&models::KEYS)?.get("model");
            model.and_then(|model| models::without_adapter(&model, paths))
        }
        _ => None,
    };
    match first {
        Some(first) => Ok(first),
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
