//! Samples for users who have none.

use super::rng::Rng;
use crate::model::{Error, Grid, Images, InputKind, Result, Samples, Tokens};

/// Tokens of a synthetic text.
const LENGTH: usize = 64;

/// Bytes that synthetic samples may take.
const MAX_BYTES: usize = 256 << 20;

/// Noise images (standard normal after normalisation), or texts of random tokens.
pub fn synthetic(inputs: InputKind, samples: usize, seed: u64) -> Result<Samples> {
    let length = |longest: Option<usize>| longest.unwrap_or(LENGTH).clamp(1, LENGTH);
    let each = match inputs {
        InputKind::Images { grid, .. } => {
            grid.image.checked_pow(2).and_then(|n| n.checked_mul(grid.channels))
        }
        InputKind::Text { longest, .. } => Some(length(longest)),
    };
    let most = each.map_or(0, |n| MAX_BYTES / 4 / n.max(1));
    if samples > most {
        return Err(Error::Samples(format!(
            "{samples} synthetic samples take more than the {} MiB that they are given; {most} of this model's fit",
            MAX_BYTES >> 20
        )));
    }
    let mut rng = Rng::new(seed);
    Ok(match inputs {
        InputKind::Images { grid: Grid { channels, image: size, .. }, .. } => {
            let n = samples * channels * size * size;
            let values = (0..n).map(|_| rng.normal()).collect();
            Samples::Images(Images { count: samples, channels, height: size, width: size, values })
        }
        InputKind::Text { vocabulary, longest, .. } => {
            let text = |_| Tokens {
                ids: (0..length(longest)).map(|_| rng.below(vocabulary) as u32).collect(),
                types: Vec::new(),
            };
            Samples::Text((0..samples).map(text).collect())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_samples_than_memory_are_refused_with_how_many_fit() {
        let grid = Grid { channels: 3, image: 512, patch: 16, any_size: false };
        let images = InputKind::Images { grid, tokens: 1 };
        assert!(synthetic(images, 86, 0).unwrap_err().to_string().contains("85 of this model's"));
        let grid = Grid { channels: usize::MAX, image: usize::MAX, patch: 1, any_size: false };
        assert!(synthetic(InputKind::Images { grid, tokens: 1 }, 1, 0).is_err());
        let text = InputKind::Text { vocabulary: 9, longest: None, types: None };
        assert!(synthetic(text, 4_000_000_000, 0).is_err());
        assert_eq!(synthetic(text, 3, 0).unwrap().len(), 3);
    }
}
