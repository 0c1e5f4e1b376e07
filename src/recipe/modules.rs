//! `modules`: the parts of a model, towers or encoder and decoder, each with its own parameters.

use super::cursor::{Cursor, Mapping};
use super::models::Models;
use super::settings::{self, Settings};
use super::{Error, Method, Model};
use crate::method::table::Base;

/// A part of the output.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// What mergekit calls it.
    pub name: String,
    /// Parameters for all models.
    pub settings: Settings,
    /// Each model's own, in the order of the recipe's models; none where the part is the base's alone.
    pub models: Option<Vec<Settings>>,
}

/// Reads several modules: each takes the same models, or the base alone.
pub(super) fn read(
    list: &Cursor,
    method: &Method,
    reader: &mut Models<'_>,
) -> Result<(Vec<Module>, Vec<Model>), Error> {
    let (mut modules, mut models): (Vec<Module>, Option<(String, Vec<Model>)>) = (Vec::new(), None);
    for (name, c) in list.entries()? {
        let map = keys(&c)?;
        if let Some(slices) = map.get("slices") {
            return Err(slices.error(
                "slices of one among several modules are not in this version: the configuration would have to say how many layers each has; \
                 give the module whole models (`models`)",
            ));
        }
        let given = map.require("models", "the models that the module is merged of")?;
        let settings = of_module(&map, method)?;
        let from_base = matches!(method.description().base, Base::Origin { .. });
        if from_base && given.list()?.iter().all(|model| reader.is_base_at(model)) {
            modules.push(Module { name, settings, models: None });
            continue;
        }
        let own = reader.read(&given, method)?;
        let (_, all) = models.get_or_insert_with(|| (name.clone(), own.clone()));
        let place_of = |model: &Model| own.iter().position(|other| other.source == model.source);
        let places: Option<Vec<usize>> = all.iter().map(place_of).collect();
        let Some(places) = places.filter(|_| all.len() == own.len()) else {
            let first = models.map_or_else(String::new, |(first, _)| first);
            return Err(given.error(format!(
                "`{name}` takes other models than `{first}`: modules take the same models in this version, or the base alone; name all \
                 of them in both, and give those that take no part in one `weight: 0` there"
            )));
        };
        let of_models = places.into_iter().map(|place| own[place].settings.clone()).collect();
        modules.push(Module { name, settings, models: Some(of_models) });
    }
    let Some((_, mut models)) = models else {
        return Err(list.error("at least one module with models beside the base is needed"));
    };
    models.iter_mut().for_each(|model| model.settings = Settings::new()); // the modules have them
    Ok((modules, models))
}

/// The keys of a module.
pub(super) fn keys<'a>(c: &Cursor<'a>) -> Result<Mapping<'a>, Error> {
    c.map(&["models", "slices", "parameters"])
}

/// The parameters of a module, for all its models.
pub(super) fn of_module(map: &Mapping, method: &Method) -> Result<Settings, Error> {
    let Some(parameters) = map.get("parameters") else { return Ok(Settings::new()) };
    let description = method.description();
    if !matches!(method, Method::Tabled(_)) {
        return Err(parameters.error(format!("the parameters of {} are given at the top", description.name)));
    }
    let known: Vec<&str> = description.parameters.iter().map(|parameter| parameter.name).collect();
    settings::read_all(&parameters.map(&known)?, description, false)
}
