//! `models`: the experts.

use super::cursor::{Cursor, Mapping};
use super::paths::Paths;
use super::{Calibration, Error, Method, Model, Proxies, Setting, Settings, Source, settings};
use crate::adapter::Adapter;
use crate::checkpoint::{hub_repository, names_adapter, weights_file};
use crate::host::PathExt;
use crate::method::table::{self, Base};
use std::path::{Path, PathBuf};

/// The keys of an expert.
pub(super) const KEYS: [&str; 7] = ["model", "lora", "name", "calibration", "weight", "task", "parameters"];

/// Samples captured where a recipe names data but no number.
const SAMPLES: usize = 32;

/// Reads `models`.
pub(super) struct Models<'a> {
    /// Where models are.
    pub paths: Paths<'a>,
    /// The base.
    pub base: &'a Path,
    /// What to tell the user.
    pub notes: Vec<String>,
}

impl Models<'_> {
    pub fn read(&mut self, list: &Cursor, method: &Method) -> Result<Vec<Model>, Error> {
        let mut models: Vec<Model> = Vec::new();
        for c in list.list()? {
            let model = self.model(&c, method)?;
            if self.is_base(model.source.path()) {
                match method.description().base {
                    Base::Origin { listed: false } => {
                        return Err(c.error("this is the base model itself; leave it out of `models`"));
                    }
                    Base::Optional if !has_base(method) => {}
                    // mergekit lists the base among the models and leaves it out of the sum.
                    Base::Origin { listed: true } | Base::Optional => {
                        let note =
                            format!("{} is the base model; its delta is zero, so it is left out", c.path);
                        self.notes.push(note);
                        continue;
                    }
                    Base::Member => {}
                }
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

    /// Whether a path leads to the base's weights, however it is spelled.
    fn is_base(&self, path: &Path) -> bool {
        path == self.base || weights_file(path).is_some_and(|file| Some(file) == weights_file(self.base))
    }

    /// The same of an entry of the list.
    pub fn is_base_at(&self, c: &Cursor) -> bool {
        let path = c.entry("model").and_then(|model| without_adapter(&model, self.paths));
        c.entry("lora").is_none() && path.is_some_and(|path| self.is_base(&path))
    }

    fn model(&mut self, c: &Cursor, method: &Method) -> Result<Model, Error> {
        if let Ok(path) = c.text() {
            return Err(c.error(format!("a mapping is expected: write `- model: {path}`")));
        }
        let map = c.map(&KEYS)?;
        self.notes.extend(map.ignored(&KEYS));
        let model = map.require("model", "the path of the expert")?;
        let source = match map.get("lora") {
            Some(lora) => self.with_adapter(&model, &lora)?,
            None => self.source(&model)?,
        };
        let settings = self.settings(&map, method)?;
        Ok(Model {
            name: match map.get("name") {
                Some(name) => name.text()?.to_owned(),
                None => default_name(source.path()),
            },
            source,
            settings,
            calibration: map
                .get("calibration")
                .map(|c| self.calibration(&c))
                .transpose()?
                .unwrap_or(Calibration::Unset),
            task: map.get("task").map(|t| t.text().map(|t| self.paths.folder.join(t))).transpose()?,
        })
    }

    /// Its own parameters; `weight` may stand outside of `parameters` too.
    fn settings(&mut self, map: &Mapping, method: &Method) -> Result<Settings, Error> {
        let description = method.description();
        let own = description.parameters.iter().filter(|p| p.of_models).map(|p| p.name);
        let known: Vec<&str> = own.chain(["weight"]).collect();
        let parameters = map.get("parameters").map(|p| p.map(&known)).transpose()?;
        self.notes.extend(parameters.iter().flat_map(|p| p.ignored(&known)));
        let inside = parameters.as_ref().and_then(|p| p.get("weight"));
        let weight = match (map.get("weight"), inside) {
            (Some(_), Some(second)) => return Err(second.error("`weight` is given twice; give it once")),
            (first, second) => first.or(second),
        };
        let mut settings = match &parameters {
            Some(parameters) => settings::read_all(parameters, description, true)?,
            None => Settings::new(),
        };
        match (weight, description.parameter("weight")) {
            (Some(c), Some(parameter)) => drop(settings.insert("weight", Setting::read(&c, parameter)?)),
            (Some(c), None) if c.number()? != 1.0 => {
                let name = description.name;
                return Err(c.error(format!("merge_method {name} takes no weights; leave out `weight`")));
            }
            _ => {}
        }
        Ok(settings)
    }

    /// A path, `{delta: FILE}`, `{model: PATH, lora: PATH}`, `BASE+delta:FILE` or `MODEL+ADAPTER`.
    fn source(&self, c: &Cursor) -> Result<Source, Error> {
        if c.is_map() {
            if let Some(path) = c.entry("path") {
                return Err(c.error(format!(
                    "models are local files here, without revisions: write `model: {}`, where that lies",
                    path.text().unwrap_or("PATH")
                )));
            }
            let map = c.map(&["delta", "model", "lora"])?;
            if let Some(model) = map.get("model") {
                return self.with_adapter(&model, &map.require("lora", "the adapter of the model")?);
            }
            let delta = map.require("delta", "the file of deltas")?;
            return Ok(Source::Delta(self.paths.folder.join(delta.text()?)));
        }
        let text = c.text()?;
        let Some((base, delta)) = text.split_once("+delta:") else {
            return self.checkpoint(c, text);
        };
        if !self.is_base(&self.paths.find(base)) {
            return Err(c.error(format!("`{base}` is not the base_model; a delta is added to that")));
        }
        Ok(Source::Delta(self.paths.folder.join(delta)))
    }

    fn checkpoint(&self, c: &Cursor, text: &str) -> Result<Source, Error> {
        let path = self.paths.find(text);
        check_expanded(c, text, &path)?;
        if path.is_there() || !text.contains('+') {
            return Ok(match Adapter::is_one(&path) {
                true => Source::Adapter { model: None, adapter: path },
                false => Source::Checkpoint(path),
            });
        }
        match halves(text).find(|(model, _)| self.paths.find(model).is_there()) {
            Some((model, adapter)) => self.adapter_of(c, model, adapter),
            None => Err(c.error(format!(
                "no such path; in `MODEL+ADAPTER` there is no model `{}`",
                halves(text).next().map_or(text, |(model, _)| model)
            ))),
        }
    }

    /// A model and an adapter, each a path or `{path: PATH}`.
    fn with_adapter(&self, model: &Cursor, adapter: &Cursor) -> Result<Source, Error> {
        let path = |c: &Cursor| match c.is_map() {
            true => c
                .map(&["path"])?
                .require("path", "where it lies")
                .and_then(|path| path.text().map(str::to_owned)),
            false => c.text().map(str::to_owned),
        };
        self.adapter_of(adapter, &path(model)?, &path(adapter)?)
    }

    fn adapter_of(&self, c: &Cursor, model: &str, adapter: &str) -> Result<Source, Error> {
        let (model, path) = (self.paths.find(model), self.paths.find(adapter));
        check_expanded(c, adapter, &path)?;
        if !Adapter::is_one(&path) {
            let what = if path.is_there() { "is no adapter" } else { "does not exist" };
            return Err(c.error(format!(
                "{} {what}: a folder with adapter_config.json and adapter_model.safetensors is expected",
                path.display()
            )));
        }
        let model = (!self.is_base(&model)).then_some(model);
        Ok(Source::Adapter { model, adapter: path })
    }

    fn calibration(&self, c: &Cursor) -> Result<Calibration, Error> {
        if c.is_map() {
            let map = c.map(&["data", "samples", "max_length"])?;
            let data =
                self.paths.folder.join(map.require("data", "the task file to run the expert on")?.text()?);
            let at_least_one = |key, what| match map.get(key) {
                None => Ok(None),
                Some(c) => match c.unsigned()? {
                    0 => Err(c.error(format!("at least one {what} is needed"))),
                    n => Ok(Some(n as usize)),
                },
            };
            let samples = at_least_one("samples", "sample")?.unwrap_or(SAMPLES);
            let max_length = at_least_one("max_length", "token")?;
            return Ok(Calibration::Data(Proxies { data, samples, max_length }));
        }
        Ok(match c.text()? {
            "none" => Calibration::None,
            file => Calibration::File(self.paths.folder.join(file)),
        })
    }
}

/// The model of an expert, without the adapter that is added to it; none if it is named in no way that is known.
pub(super) fn without_adapter(c: &Cursor, paths: Paths) -> Option<PathBuf> {
    if c.is_map() {
        let model = c.entry("model")?;
        let path = model.entry("path");
        return Some(paths.find(path.as_ref().unwrap_or(&model).text().ok()?));
    }
    let text = c.text().ok()?;
    let path = paths.find(text);
    let whole = || (path.is_there() || text.contains("+delta:")).then(|| path.clone());
    let model = || halves(text).map(|(model, _)| paths.find(model)).find(|model| model.is_there());
    Some(whole().or_else(model).unwrap_or(path))
}

/// What `MODEL+ADAPTER` may mean, as paths may have a plus too.
fn halves(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices('+').map(|(plus, _)| (&text[..plus], &text[plus + 1..]))
}

/// Shells expand `~` and variables; recipes are read as they are.
pub(super) fn check_expanded(c: &Cursor, text: &str, path: &Path) -> Result<(), Error> {
    if (text.starts_with('~') || text.contains('$')) && !path.is_there() {
        return Err(
            c.error(format!("`{text}`: ~ and $VARIABLES are not expanded in a recipe; write the path out"))
        );
    }
    Ok(())
}

/// The last part of the path, without the endings of weight files; for a model in the Hugging Face cache, where that is a hash,
/// the last part of its name.
pub(super) fn default_name(path: &Path) -> String {
    if let Some((_, name)) = hub_repository(path) {
        return name.rsplit('/').next().unwrap_or(&name).to_owned();
    }
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let name = name.strip_suffix(".safetensors").unwrap_or(&name);
    name.strip_suffix(".delta").unwrap_or(name).to_owned()
}

fn check_model(c: &Cursor, model: &Model, method: &Method) -> Result<(), Error> {
    let wanted = method.description().calibration;
    let given = &model.calibration;
    if wanted == table::Calibration::OfMerged && !matches!(given, Calibration::Data(_)) {
        return Err(c.error(format!(
            "merge_method {} runs models that are made on the way, whose inputs no file can hold; give samples to run: \
             `calibration: {{data: PATH}}`",
            method.name()
        )));
    }
    if wanted != table::Calibration::Unused && *given == Calibration::Unset {
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
    if let Calibration::Data(Proxies { data, .. }) = &model.calibration {
        return Err(c.error(format!(
            "merge_method esm++ needs a calibration file, because the inputs are used twice; write one with `esmerge \
             capture {} --data {} -o FILE`",
            model.source.path().display(),
            data.display()
        )));
    }
    if model.calibration == Calibration::None {
        return Err(c.error(
            "merge_method esm++ routes by the means of layer inputs, so that `calibration: none` is not enough; give a \
             calibration file",
        ));
    }
    if !names_adapter(&model.name) {
        return Err(c.error(format!(
            "`{}` cannot name the folder of an adapter; give the expert a `name` without a leading dot and without \
             / \\ : * ? \" < > |",
            model.name
        )));
    }
    Ok(())
}

fn check_models(c: &Cursor, models: &[Model], method: &Method) -> Result<(), Error> {
    if method.description().is_calibrated() {
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
    let (name, (least, most)) = (method.name(), method.description().models);
    if models.len() < least || models.len() > most {
        let wanted = match (least, most) {
            (1, 1) => "one model".to_owned(),
            (least, most) if least == most => format!("{least} models"),
            (least, _) => format!("{least} models or more"),
        };
        let besides = match method.description().base {
            Base::Origin { .. } => " beside the base",
            Base::Optional | Base::Member => "",
        };
        return Err(
            c.error(format!("merge_method {name} takes {wanted}{besides}, but {} are given", models.len()))
        );
    }
    Ok(())
}

/// Whether the recipe names a base.
fn has_base(method: &Method) -> bool {
    match method {
        Method::Esm(_) => true,
        Method::Tabled(tabled) => tabled.has_base,
    }
}
