//! What a model takes.

use super::architectures::{self, Grid};
use super::{Error, Result, Samples, Tokens};

/// What a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// Token ids.
    Text {
        /// Rows of the vocabulary.
        vocabulary: usize,
        /// The longest text, if there is a limit.
        longest: Option<usize>,
        /// Rows of the table of token types, if there is one.
        types: Option<usize>,
    },
    /// Images.
    Images {
        /// Their size, and that of a patch.
        grid: Grid,
        /// Tokens that one image becomes.
        tokens: usize,
    },
}

impl InputKind {
    /// Refuses samples of another kind, or past the model's limits. `name` says which sample it is, by its place.
    pub fn admit(&self, samples: &Samples, name: impl Fn(usize) -> String) -> Result<()> {
        match *self {
            InputKind::Images { grid, .. } => grid.check(samples.images()?),
            InputKind::Text { vocabulary, longest, types } => {
                let texts = samples.texts()?;
                let lengths: Vec<usize> = texts.iter().map(|t| t.ids.len()).collect();
                if let Some(i) = lengths.iter().position(|&n| n == 0) {
                    return Err(Error::Samples(format!("{} has no tokens", name(i))));
                }
                architectures::check_lengths(&lengths, longest.unwrap_or(usize::MAX), &name)?;
                below(texts, |text| &text.ids, vocabulary, ["the id", "vocabulary"], &name)?;
                below(
                    texts,
                    |text| &text.types,
                    types.unwrap_or(usize::MAX),
                    ["the token type", "table of token types"],
                    &name,
                )
            }
        }
    }
}

/// Refuses a number past the rows of a table.
fn below(
    texts: &[Tokens],
    numbers: impl Fn(&Tokens) -> &Vec<u32>,
    rows: usize,
    [what, table]: [&str; 2],
    name: &impl Fn(usize) -> String,
) -> Result<()> {
    for (i, text) in texts.iter().enumerate() {
        if let Some(number) = numbers(text).iter().find(|&&n| n as usize >= rows) {
            return Err(Error::Samples(format!(
                "{} holds {what} {number}, but the model's {table} has only {rows} rows; was it made by another tokenizer?",
                name(i)
            )));
        }
    }
    Ok(())
}
