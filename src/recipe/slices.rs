//! `slices`: an output whose layers are ranges of other models' layers, one after another.

use super::cursor::Cursor;
use super::models::{check_expanded, default_name};
use super::paths::Paths;
use super::settings::{self, Settings};
use super::{Calibration, Error, Model, Source};
use crate::checkpoint::weights_file;
use crate::host::PathExt;
use crate::method::Description;
use crate::method::table::Base;
use std::ops::Range;
use std::path::PathBuf;

/// Some layers of the output.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// The layers of the output.
    pub layers: Range<usize>,
    /// Where the base's come from: a model, and its first layer.
    pub base: (PathBuf, usize),
    /// Where each model's come from, in the order of the recipe's models.
    pub sources: Vec<SliceSource>,
    /// Parameters for all models.
    pub settings: Settings,
}

/// The layers of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceSource {
    /// The model.
    pub path: PathBuf,
    /// Its first layer here; the slice says how many there are.
    pub first: usize,
    /// Its own parameters.
    pub settings: Settings,
}

/// Which layer a tensor is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The layer; none for a tensor outside of layers.
    pub layer: Option<usize>,
    /// How many layers there are.
    pub layers: usize,
    /// Whether a tensor outside of layers comes before them.
    pub before: bool,
    /// Which of the recipe's modules the tensor is of, if it has several.
    pub module: Option<usize>,
}

impl Place {
    /// Where the layer lies between the first, 0, and the last, 1; the only one is the last. None outside of layers.
    pub fn share(self) -> Option<f64> {
        Some(share(self.layer?, self.layers))
    }

    /// The slice, and where the layer lies in it.
    pub(super) fn within<'a>(&self, slices: &'a [Slice]) -> (Option<&'a Slice>, Option<f64>) {
        match self.layer {
            None if self.before => (slices.first(), None),
            None => (slices.last(), None),
            Some(layer) => {
                let slice = slices.iter().find(|slice| slice.layers.contains(&layer));
                (slice, slice.map(|slice| share(layer - slice.layers.start, slice.layers.len())))
            }
        }
    }
}

fn share(layer: usize, layers: usize) -> f64 {
    if layers > 1 { layer as f64 / (layers - 1) as f64 } else { 1.0 }
}

/// Reads `slices`.
pub(super) struct Slices<'a> {
    /// Where models are.
    pub paths: Paths<'a>,
    pub method: &'static Description,
    /// The base, if the recipe names one.
    pub base: Option<PathBuf>,
}

/// A source as the recipe has it.
struct Given {
    path: PathBuf,
    range: Range<usize>,
    settings: Settings,
}

impl Slices<'_> {
    /// The slices, and the models whose layers they take: one for each place among the sources.
    pub fn read(&self, list: &Cursor) -> Result<(Vec<Slice>, Vec<Model>), Error> {
        let mut slices: Vec<Slice> = Vec::new();
        for c in list.list()? {
            let first = slices.last().map_or(0, |slice| slice.layers.end);
            let slice = self.slice(&c, first)?;
            if slices.first().is_some_and(|other| other.sources.len() != slice.sources.len()) {
                return Err(c.error("every slice needs as many sources as the first"));
            }
            slices.push(slice);
        }
        let Some(first) = slices.first() else { return Err(list.error("at least one slice is needed")) };
        let mut models: Vec<Model> = Vec::new();
        for (i, source) in first.sources.iter().enumerate() {
            let own = default_name(&source.path);
            let taken = models.iter().any(|model| model.name == own);
            models.push(Model {
                name: if taken { format!("{own}-{i}") } else { own },
                source: Source::Checkpoint(source.path.clone()),
                settings: Settings::new(),
                calibration: Calibration::Unset,
                task: None,
            });
        }
        let (least, most) = self.method.models;
        if models.len() < least || models.len() > most {
            let wanted = if least == most { least.to_string() } else { format!("{least} or more") };
            return Err(list.error(format!(
                "merge_method {} takes {wanted} sources a slice{}, but {} are given",
                self.method.name,
                if self.base.is_some() { " beside the base" } else { "" },
                models.len()
            )));
        }
        Ok((slices, models))
    }

    fn slice(&self, c: &Cursor, first: usize) -> Result<Slice, Error> {
        let map = c.map(&["sources", "parameters"])?;
        let list = map.require("sources", "the models whose layers the slice takes")?;
        let mut given = Vec::new();
        for source in list.list()? {
            let own = self.source(&source)?;
            let len = given.first().map_or(own.range.len(), |other: &Given| other.range.len());
            if own.range.len() != len {
                return Err(source.error(format!("every source of a slice needs as many layers: {len}")));
            }
            given.push(own);
        }
        let Some(len) = given.first().map(|source| source.range.len()) else {
            return Err(list.error("at least one source is needed"));
        };
        let base = match (self.method.base, &self.base) {
            (Base::Member, _) | (Base::Optional, None) => (given[0].path.clone(), given[0].range.start),
            (_, named) => {
                let is_base = |source: &Given| {
                    named.as_ref().is_some_and(|base| {
                        *base == source.path
                            || weights_file(base).is_some_and(|file| Some(file) == weights_file(&source.path))
                    })
                };
                let Some(at) = given.iter().position(is_base) else {
                    return Err(
                        list.error("the base model must be one of the sources, so that its layers are known")
                    );
                };
                let base = given.remove(at);
                (base.path, base.range.start)
            }
        };
        let settings = match map.get("parameters") {
            Some(parameters) => {
                settings::read_all(&parameters.map(&self.method.keys())?, self.method, false)?
            }
            None => Settings::new(),
        };
        let source = |source: Given| SliceSource {
            path: source.path,
            first: source.range.start,
            settings: source.settings,
        };
        let sources = given.into_iter().map(source).collect();
        Ok(Slice { layers: first..first + len, base, sources, settings })
    }

    fn source(&self, c: &Cursor) -> Result<Given, Error> {
        let map = c.map(&["model", "layer_range", "parameters"])?;
        let model = map.require("model", "the path of the model")?;
        let path = self.paths.find(model.text()?);
        check_expanded(&model, model.text()?, &path)?;
        if let (false, Some((whole, _))) = (path.is_there(), model.text()?.split_once('+'))
            && self.paths.find(whole).is_there()
        {
            return Err(model.error(
                "an adapter is added to a whole model: make that in a document of its own before this one (`name: adapted`, \
                 `merge_method: passthrough`, `models: [{model: MODEL+ADAPTER}]`, `---`), and name it here",
            ));
        }
        let range =
            map.require("layer_range", "the layers, such as [0, 16]: the first, and the one after the last")?;
        let ends = range.list()?.iter().map(Cursor::unsigned).collect::<Result<Vec<_>, _>>()?;
        let range = match ends[..] {
            [begin, end] if begin < end && end < 1 << 20 => begin as usize..end as usize,
            _ => return Err(range.error("two whole numbers are expected, the first below the second")),
        };
        let settings = match map.get("parameters") {
            Some(parameters) => {
                let own: Vec<&str> = self.method.parameters.iter().map(|p| p.name).collect();
                settings::read_all(&parameters.map(&own)?, self.method, true)?
            }
            None => Settings::new(),
        };
        Ok(Given { path, range, settings })
    }
}
