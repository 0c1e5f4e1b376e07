//! Values that left the numbers: found, and traced to the layer that they enter first.

use super::{Error, Part, Result, Tap};
use crate::backend::layers::Layers;

/// Place and kind of the first value that is not finite.
pub(crate) fn not_finite(values: &[f32]) -> Option<(usize, &'static str)> {
    let at = values.iter().position(|v| !v.is_finite())?;
    Some((at, if values[at].is_nan() { "NaN" } else { "an infinity" }))
}

/// Stops at the first layer whose input is not finite.
pub(super) struct Finder<'a, B> {
    pub backend: &'a B,
}

impl<B: Layers> Tap<B> for Finder<'_, B> {
    async fn input(&mut self, weights: &[&str], x: &B::Tensor, _part: &Part<B>) -> Result<()> {
        match not_finite(&self.backend.download(x).await?) {
            None => Ok(()),
            Some((_, value)) => {
                Err(Error::not_finite_input(weights.first().copied().unwrap_or_default(), value))
            }
        }
    }
}

impl Error {
    /// Of a value that enters a layer.
    pub(crate) fn not_finite_input(weight: &str, value: &'static str) -> Error {
        Error::NotFinite { place: format!("the input of `{weight}`"), value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_that_is_not_finite_is_found_and_named() {
        assert_eq!(not_finite(&[1.0, f32::MAX]), None);
        assert_eq!(not_finite(&[1.0, f32::NEG_INFINITY, f32::NAN]), Some((1, "an infinity")));
    }
}
