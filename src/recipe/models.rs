//! `models`: the experts.

use super::cursor::Cursor;
use super::{Calibration, Error, Method, Model, Proxies, Source};
use crate::adapter::Adapter;
use crate::checkpoint::{hub_repository, names_adapter, weights_file};
use std::path::Path;

/// The keys of an expert.
pub(super) const KEYS: [&str; 7] = ["model", "lora", "name", "calibration", "weight", "task", "parameters"];

/// A sum of weights this far below the sum of their sizes is what rounding left of zero.
const ROUNDING: f64 = 1e-9;

/// Samples captured where a recipe names data but no number.
const SAMPLES: usize = 32;

/// Reads `models`.
pub(super) struct Models<'a> {
    /// Where relative paths start.
    pub folder: &'a Path,
    /// The base.
    pub base: &'a Path,
    /// The weight of a model that gives none.
    pub default_weight: f64,
    /// What to tell the user.
    pub notes: Vec<String>,
}

impl Models<'_> {
    pub fn read(&mut self, list: &Cursor, method: &Method) -> Result<Vec<Model>, Error> {
        let mut models: Vec<Model> = Vec::new();
        for c in list.list()? {
            let model = self.model(&c)?;
            if !matches!(method, Method::Linear { .. }) && self.is_base(model.source.path()) {
                if matches!(method, Method::Esm(_)) {
                    return Err(c.error("this is the base model itself; leave it out of `models`"));
                }
                // mergekit lists the base among the models and leaves it out of the sum.
                self.notes
                    .push(format!("{} is the base model; its delta is zero, so it is left out", c.path));
                continue;
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

    fn model(&mut self, c: &Cursor) -> Result<Model, Error> {
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
            return Ok(Source::Delta(self.folder.join(delta.text()?)));
        }
        let text = c.text()?;
        let Some((base, delta)) = text.split_once("+delta:") else {
            return self.checkpoint(c, text);
        };
        if !self.is_base(&self.folder.join(base)) {
            return Err(c.error(format!("`{base}` is not the base_model; a delta is added to that")));
        }
        Ok(Source::Delta(self.folder.join(delta)))
    }

    fn checkpoint(&self, c: &Cursor, text: &str) -> Result<Source, Error> {
        let path = self.folder.join(text);
        check_expanded(c, text, &path)?;
        if path.exists() || !text.contains('+') {
            return Ok(match Adapter::is_one(&path) {
                true => Source::Adapter { model: None, adapter: path },
                false => Source::Checkpoint(path),
            });
        }
        let halves = || text.match_indices('+').map(|(plus, _)| (&text[..plus], &text[plus + 1..]));
        match halves().find(|(model, _)| self.folder.join(model).exists()) {
            Some((model, adapter)) => self.adapter_of(c, model, adapter),
            None => Err(c.error(format!(
                "no such path; in `MODEL+ADAPTER` there is no model `{}`",
                halves().next().map_or(text, |(model, _)| model)
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
        let (model, path) = (self.folder.join(model), self.folder.join(adapter));
        check_expanded(c, adapter, &path)?;
        if !Adapter::is_one(&path) {
            let what = if path.exists() { "is no adapter" } else { "does not exist" };
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
            let data = self.folder.join(map.require("data", "the task file to run the expert on")?.text()?);
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
            file => Calibration::File(self.folder.join(file)),
        })
    }
}

/// Shells expand `~` and variables; recipes are read as they are.
pub(super) fn check_expanded(c: &Cursor, text: &str, path: &Path) -> Result<(), Error> {
    if (text.starts_with('~') || text.contains('$')) && !path.exists() {
        return Err(
            c.error(format!("`{text}`: ~ and $VARIABLES are not expanded in a recipe; write the path out"))
        );
    }
    Ok(())
}

/// The last part of the path, without the endings of weight files; for a model in the Hugging Face cache, where that is a hash,
/// the last part of its name.
fn default_name(path: &Path) -> String {
    if let Some((_, name)) = hub_repository(path) {
        return name.rsplit('/').next().unwrap_or(&name).to_owned();
    }
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
    let sum: f64 = models.iter().map(|m| m.weight).sum();
    let size: f64 = models.iter().map(|m| m.weight.abs()).sum();
    if normalized && sum.abs() <= ROUNDING * size {
        let of = if sum == 0.0 { "0".to_owned() } else { format!("{sum:e}, which is rounding error") };
        return Err(c.error(format!(
            "the weights sum to {of}, so they cannot be divided by their sum; set `normalize: false`"
        )));
    }
    if !size.is_finite() {
        return Err(c.error("the weights are too large to be summed"));
    }
    Ok(())
}
