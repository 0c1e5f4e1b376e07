//! What models of text share: packed samples, and tables of positions.

use super::super::{Error, Part, Result, Samples, Tokens};
use super::rope::Rope;
use crate::backend::Shape;
use crate::backend::layers::{Attention, Layers};
use std::rc::Rc;

/// Samples one below another.
pub struct Packed<'a> {
    pub texts: &'a [Tokens],
    pub lengths: Vec<usize>,
    pub ids: Vec<u32>,
}

impl<'a> Packed<'a> {
    /// Refuses what is longer than the model's positions.
    pub fn new(samples: &'a Samples, longest: Option<usize>) -> Result<Self> {
        let texts = samples.texts()?;
        let lengths: Vec<usize> = texts.iter().map(|t| t.ids.len()).collect();
        check_lengths(&lengths, longest.unwrap_or(usize::MAX), &|i| format!("sample {i}"))?;
        let ids = texts.iter().flat_map(|t| t.ids.iter().copied()).collect();
        Ok(Packed { texts, lengths, ids })
    }

    /// The position of every token, counted from a number in every sample.
    pub fn positions(&self, first: usize) -> Vec<u32> {
        self.lengths.iter().flat_map(|&n| (0..n).map(move |i| (first + i) as u32)).collect()
    }

    /// Token types, all 0 where a text gives none.
    pub fn types(&self) -> Vec<u32> {
        let of = |text: &Tokens, i: usize| text.types.get(i).copied().unwrap_or(0);
        self.texts.iter().flat_map(|t| (0..t.ids.len()).map(move |i| of(t, i))).collect()
    }

    /// These samples with their embedding.
    pub fn embedded<B: Layers>(self, backend: &B, hidden: B::Tensor) -> Result<Part<B>> {
        let segments = Rc::new(backend.segments(&self.lengths)?);
        Ok(Part { segments, lengths: self.lengths, rotary: Vec::new(), positions: None, hidden })
    }

    /// Tables of cosines and sines of all tokens.
    pub fn rotary<B: Layers>(&self, backend: &B, rope: &Rope) -> Result<Rc<[B::Tensor; 2]>> {
        let [cos, sin] = rope.tables(&self.lengths);
        let shape = Shape::matrix(self.ids.len(), rope.frequencies.len());
        Ok(Rc::new([backend.upload(shape, &cos)?, backend.upload(shape, &sin)?]))
    }
}

/// Refuses texts longer than the model's position table. `name` says which sample it is.
pub fn check_lengths(lengths: &[usize], longest: usize, name: &dyn Fn(usize) -> String) -> Result<()> {
    match lengths.iter().position(|&n| n > longest) {
        None => Ok(()),
        Some(i) => Err(Error::Samples(format!(
            "{} has {} tokens, more than the model's position table of {longest}; shorten the texts or let the tokenizer \
             truncate them (--max-length, or `max_length` in a recipe)",
            name(i),
            lengths[i]
        ))),
    }
}

/// Every token sees every other.
pub fn encoder_attention(hidden: usize, heads: usize) -> Attention {
    let scale = ((hidden / heads) as f32).sqrt().recip();
    Attention { heads, key_heads: heads, causal: false, window: None, scale, cap: None }
}
