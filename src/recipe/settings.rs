//! Parameters that may differ from layer to layer (gradients) and from tensor to tensor (filters).

use super::Error;
use super::cursor::{Cursor, Mapping};
use super::yaml::Value as Yaml;
use crate::method::table::{Form, Parameter};
use crate::method::{Description, Value};
use std::collections::BTreeMap;

/// What a parameter is, from tensor to tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// The same everywhere.
    Value(Value),
    /// Anchors from the first layer to the last, with straight lines between.
    Gradient(Vec<f64>),
    /// The first whose text is part of the tensor's name; without a text it is for all.
    Filters(Vec<(Option<String>, Setting)>),
}

/// Parameters by name.
pub type Settings = BTreeMap<&'static str, Setting>;

impl Setting {
    /// What it is for a tensor, of a layer that lies at `place` between the first, 0, and the last, 1; of one outside of layers the
    /// first anchor of a gradient. None where no filter matches.
    pub fn at(&self, tensor: &str, place: Option<f64>) -> Option<Value> {
        match self {
            Setting::Value(value) => Some(*value),
            Setting::Gradient(anchors) => Some(Value::Number(gradient(anchors, place.unwrap_or(0.0)))),
            Setting::Filters(filters) => {
                let matches = |filter: &Option<String>| match filter.as_deref() {
                    None | Some("*") => true,
                    Some(part) => tensor.contains(part),
                };
                filters
                    .iter()
                    .filter(|(filter, _)| matches(filter))
                    .find_map(|(_, setting)| setting.at(tensor, place))
            }
        }
    }

    /// The number that it is everywhere.
    pub fn number(&self) -> Option<f64> {
        match self {
            Setting::Value(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// Reads a parameter.
    pub(super) fn read(c: &Cursor, parameter: &Parameter) -> Result<Setting, Error> {
        let Yaml::List(entries) = &c.node.value else { return scalar(c, parameter).map(Setting::Value) };
        if entries.is_empty() {
            return Err(c.error("at least one value is expected"));
        }
        let is_number = |value: &Yaml| matches!(value, Yaml::Int(_) | Yaml::Float(_));
        if entries.iter().all(|entry| is_number(&entry.value)) {
            if !matches!(parameter.form, Form::Number(_)) {
                return Err(c.error(format!("{} is expected, not a gradient", parameter.form)));
            }
            let anchor = |c: &Cursor| match scalar(c, parameter)? {
                Value::Number(number) => Ok(number),
                _ => Err(c.error("a number is expected")),
            };
            return Ok(Setting::Gradient(c.list()?.iter().map(anchor).collect::<Result<_, _>>()?));
        }
        let entry = |c: Cursor| -> Result<(Option<String>, Setting), Error> {
            if !c.is_map() {
                return Ok((None, Setting::read(&c, parameter)?));
            }
            let map = c.map(&["filter", "value"])?;
            let filter = map.get("filter").map(|c| c.text().map(str::to_owned)).transpose()?;
            let value = map.require("value", "what the parameter is for the tensors of this filter")?;
            Ok((filter, Setting::read(&value, parameter)?))
        };
        Ok(Setting::Filters(c.list()?.into_iter().map(entry).collect::<Result<_, _>>()?))
    }
}

/// The point at `place` of straight lines through equidistant anchors.
fn gradient(anchors: &[f64], place: f64) -> f64 {
    let last = anchors.len().saturating_sub(1);
    let at = place.clamp(0.0, 1.0) * last as f64;
    let before = (at.floor() as usize).min(last);
    let after = (before + 1).min(last);
    let share = at - before as f64;
    let anchor = |i: usize| anchors.get(i).copied().unwrap_or(0.0);
    (1.0 - share) * anchor(before) + share * anchor(after)
}

fn scalar(c: &Cursor, parameter: &Parameter) -> Result<Value, Error> {
    match parameter.form {
        Form::Number(range) => {
            let number = c.number()?;
            match range.contains(number) {
                true => Ok(Value::Number(number)),
                false => Err(c.error(format!("{range} is expected, but {number} is given"))),
            }
        }
        Form::Count => match c.unsigned()? {
            0 => Err(c.error("a whole number from 1 is expected")),
            n => Ok(Value::Number(n as f64)),
        },
        Form::Switch => c.boolean().map(Value::Switch),
        Form::Word(words) => {
            let given = match &c.node.value {
                Yaml::Bool(on) => on.to_string(),
                _ => c.text().unwrap_or_default().to_owned(),
            };
            let found = words.iter().find(|word| **word == given);
            found
                .map(|word| Value::Word(word))
                .ok_or_else(|| c.error(format!("one of {} is expected", words.join(", "))))
        }
        Form::Special(what) => Err(c.error(format!("{what} is expected"))),
    }
}

/// The parameters of a mapping that the method has.
pub(super) fn read_all(map: &Mapping, method: &Description, of_models: bool) -> Result<Settings, Error> {
    let own = method.parameters.iter().filter(|parameter| !of_models || parameter.of_models);
    let given = own.filter_map(|parameter| Some((parameter, map.get(parameter.name)?)));
    given.map(|(parameter, c)| Ok((parameter.name, Setting::read(&c, parameter)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_straight_between_their_anchors() {
        for (place, expected) in [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 0.75), (1.0, 0.5), (2.0, 0.5)] {
            assert!((gradient(&[0.0, 1.0, 0.5], place) - expected).abs() < 1e-15, "{place}");
        }
        assert_eq!(gradient(&[0.3], 0.7), 0.3);
    }

    #[test]
    fn the_first_filter_that_matches_wins() {
        let value = |x| Setting::Value(Value::Number(x));
        let filters = Setting::Filters(vec![
            (Some("mlp".to_owned()), Setting::Gradient(vec![0.0, 1.0])),
            (Some("down".to_owned()), value(0.25)),
            (None, value(0.5)),
        ]);
        let at = |name| filters.at(name, Some(0.75));
        assert_eq!(at("a.3.mlp.down.weight"), Some(Value::Number(0.75)));
        assert_eq!(at("a.3.down.weight"), Some(Value::Number(0.25)));
        assert_eq!(at("norm"), Some(Value::Number(0.5)));
        let only = Setting::Filters(vec![(Some("mlp".to_owned()), value(1.0))]);
        assert_eq!(only.at("norm", None), None);
    }
}
