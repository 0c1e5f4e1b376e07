//! What goes into a model.

use super::{Error, Result};
use std::ops::Range;

/// Samples of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Samples {
    /// Token ids, padding removed.
    Text(Vec<Tokens>),
    /// Images of one size.
    Images(Images),
}

/// One text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Ids of its tokens; padding is left out, and positions count what remains.
    pub ids: Vec<u32>,
    /// Token types (which of two sentences), where the model has them; all 0 if empty.
    pub types: Vec<u32>,
}

/// Images ready for the model: resized and normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// How many.
    pub count: usize,
    /// Colours.
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// `count x channels x height x width`.
    pub values: Vec<f32>,
}

impl Samples {
    /// How many samples.
    pub fn len(&self) -> usize {
        match self {
            Samples::Text(texts) => texts.len(),
            Samples::Images(images) => images.count,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of some of them.
    pub fn slice(&self, range: Range<usize>) -> Samples {
        match self {
            Samples::Text(texts) => Samples::Text(texts[range].to_vec()),
            Samples::Images(images) => {
                let size = images.channels * images.height * images.width;
                let values = images.values[range.start * size..range.end * size].to_vec();
                Samples::Images(Images { count: range.len(), values, ..*images })
            }
        }
    }

    /// The texts, for a model that reads text.
    pub fn texts(&self) -> Result<&[Tokens]> {
        match self {
            Samples::Text(texts) => Ok(texts),
            Samples::Images(_) => {
                Err(Error::Samples("the samples are images, but the model reads text".into()))
            }
        }
    }

    /// The images, for a model that sees.
    pub fn images(&self) -> Result<&Images> {
        match self {
            Samples::Images(images) => Ok(images),
            Samples::Text(_) => {
                Err(Error::Samples("the samples are texts, but the model takes images".into()))
            }
        }
    }
}

/// How a sample's token features become one feature vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over its tokens.
    Mean,
    /// Its first token: `[CLS]`.
    First,
    /// Its last token.
    Last,
}

impl Pooling {
    /// From a name or a description that begins with one: `mean`, `cls`, `last token`.
    pub fn from_name(text: &str) -> Option<Pooling> {
        match text.split(|c: char| !c.is_alphanumeric()).next()?.to_ascii_lowercase().as_str() {
            "mean" | "average" | "avg" => Some(Pooling::Mean),
            "cls" | "first" => Some(Pooling::First),
            "last" | "eos" => Some(Pooling::Last),
            _ => None,
        }
    }
}
