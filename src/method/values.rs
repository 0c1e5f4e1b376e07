//! The parameters of a method for one tensor.

use super::table::{Default, Description};
use super::ties::OfModel;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Number(f64),
    /// On or off.
    Switch(bool),
    /// One of the parameter's words.
    Word(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => number.fmt(f),
            Value::Switch(on) => on.fmt(f),
            Value::Word(word) => f.write_str(word),
        }
    }
}

/// All parameters for one tensor; where none is given, the method's default.
#[derive(Clone, Debug)]
pub struct Values {
    method: &'static Description,
    merge: BTreeMap<&'static str, Value>,
    models: Vec<BTreeMap<&'static str, Value>>,
    /// Whether the models are seen as differences to a base that the recipe names.
    pub has_base: bool,
    /// A key of chance for each model, of this tensor alone.
    pub keys: Vec<u64>,
    /// What `ties` knows of all tensors together.
    pub of_model: Option<Rc<OfModel>>,
}

impl Values {
    /// The defaults, for so many models.
    pub fn defaults(method: &'static Description, models: usize) -> Values {
        let keys = (0..models).map(|model| chance_key(0, "", model)).collect();
        Values {
            method,
            merge: BTreeMap::new(),
            models: vec![BTreeMap::new(); models],
            has_base: true,
            keys,
            of_model: None,
        }
    }

    /// Sets a parameter of the merge.
    pub fn set(&mut self, name: &'static str, value: Value) {
        self.merge.insert(name, value);
    }

    /// Sets a parameter of a model.
    pub fn set_of(&mut self, model: usize, name: &'static str, value: Value) {
        if let Some(values) = self.models.get_mut(model) {
            values.insert(name, value);
        }
    }

    /// Of which method.
    pub fn method(&self) -> &'static Description {
        self.method
    }

    /// How many models there are.
    pub fn models(&self) -> usize {
        self.models.len()
    }

    fn default(&self, name: &str) -> Value {
        match self.method.parameter(name).map(|parameter| parameter.default) {
            Some(Default::Is(value)) => value,
            _ => Value::Number(1.0),
        }
    }

    /// A parameter of the merge.
    pub fn get(&self, name: &str) -> Value {
        self.merge.get(name).copied().unwrap_or_else(|| self.default(name))
    }

    /// A number; 1 and 0 for switches.
    pub fn number(&self, name: &str) -> f64 {
        as_number(self.get(name))
    }

    /// A switch.
    pub fn is_on(&self, name: &str) -> bool {
        as_number(self.get(name)) != 0.0
    }

    /// A word; empty if it is none.
    pub fn word(&self, name: &str) -> &'static str {
        match self.get(name) {
            Value::Word(word) => word,
            _ => "",
        }
    }

    /// A number of each model.
    pub fn of_models(&self, name: &str) -> Vec<f64> {
        let of_merge = || self.get(name);
        self.models.iter().map(|own| as_number(own.get(name).copied().unwrap_or_else(of_merge))).collect()
    }
}

fn as_number(value: Value) -> f64 {
    match value {
        Value::Number(number) => number,
        Value::Switch(on) => f64::from(u8::from(on)),
        Value::Word(_) => 0.0,
    }
}

/// A key of the generator for a tensor of a model: FNV-1a over the seed, the name and the model's place, finished as SplitMix64
/// does.
pub fn chance_key(seed: u64, tensor: &str, model: usize) -> u64 {
    let bytes =
        seed.to_le_bytes().into_iter().chain(tensor.bytes()).chain([0]).chain((model as u64).to_le_bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mixed = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
