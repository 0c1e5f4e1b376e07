//! A model's `config.json`, read key by key.

use super::{Error, Result};
use crate::backend::layers::Activation;
use serde_json::Value;

/// Past any model's size: a larger number is a mistake, and what would be allocated by it takes all memory.
const MAX_SIZE: usize = 1 << 24;

/// Many times what any model has.
const MAX_BLOCKS: usize = 1 << 16;

/// A JSON object, with errors that name the key.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    value: &'a Value,
}

impl<'a> Config<'a> {
    /// The configuration in a parsed `config.json`.
    pub fn new(value: &'a Value) -> Self {
        Config { value }
    }

    /// An object inside this one.
    pub fn object(&self, key: &str) -> Option<Config<'a>> {
        self.value.get(key).filter(|v| v.is_object()).map(Config::new)
    }

    /// The value of a key; absent and `null` are the same.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|v| !v.is_null())
    }

    /// A text, if it is there.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    /// A flag, false where it is absent.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A size: a positive integer that must be there.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| Error::Config(format!("`{key}` is missing")))
    }

    /// A size that has a default.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    /// How many blocks there are: memory is taken for a word on each.
    pub fn blocks(&self, key: &str) -> Result<usize> {
        match self.size(key)? {
            blocks if blocks <= MAX_BLOCKS => Ok(blocks),
            blocks => Err(Error::Config(format!("`{key}` is {blocks} blocks; up to {MAX_BLOCKS} are taken"))),
        }
    }

    /// A size that may be absent.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let found = self.optional_index(key)?;
        match found {
            Some(0) => Err(Error::Config(format!("`{key}` should be a positive integer but is 0"))),
            _ => Ok(found),
        }
    }

    /// A number that counts from 0 and has a default.
    pub fn index_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_index(key)?.unwrap_or(default))
    }

    fn optional_index(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n <= MAX_SIZE => Ok(Some(n)),
            _ => Err(Error::Config(format!(
                "`{key}` should be a positive integer up to {MAX_SIZE} but is {value}"
            ))),
        }
    }

    /// A number that has a default.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value
            .as_f64()
            .filter(|x| x.is_finite())
            .ok_or_else(|| Error::Config(format!("`{key}` should be a number but is {value}")))
    }

    /// The activation under a key, by the names of Hugging Face's transformers.
    pub fn activation(&self, key: &str, default: &'static str) -> Result<Activation> {
        match self.text(key).unwrap_or(default) {
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "quick_gelu" => Ok(Activation::QuickGelu),
            "silu" | "swish" => Ok(Activation::Silu),
            "relu" => Ok(Activation::Relu),
            "tanh" => Ok(Activation::Tanh),
            other => {
                Err(Error::Unsupported { found: format!("the activation `{other}` (`{key}`) is not known") })
            }
        }
    }

    /// Heads, and the width of one.
    pub fn heads(&self, hidden: usize) -> Result<(usize, usize)> {
        self.heads_of(hidden, self.size("num_attention_heads")?)
    }

    /// The same where the number of heads has a default.
    pub fn heads_or(&self, hidden: usize, default: usize) -> Result<(usize, usize)> {
        self.heads_of(hidden, self.size_or("num_attention_heads", default)?)
    }

    fn heads_of(&self, hidden: usize, heads: usize) -> Result<(usize, usize)> {
        if !hidden.is_multiple_of(heads) {
            return Err(Error::Config(format!("hidden_size {hidden} is no multiple of {heads} heads")));
        }
        Ok((heads, hidden / heads))
    }
}
