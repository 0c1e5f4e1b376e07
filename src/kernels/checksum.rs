use super::recorder::{Dispatch, require};
use super::shaders::checksum::{Bindings, CHECKSUM, Params, WORDS};
use super::{Recorder, Result, View};

/// Adds to `sum`, one 32-bit integer, the [`checksum_of`] the words of the packed `x`, the first of which has the place `first`.
///
/// # Errors
/// If a view has gaps or does not fit its buffer or the device's bindings, or `sum` is not one element.
pub fn checksum(recorder: &mut Recorder<'_>, x: &View<'_>, first: usize, sum: &View<'_>) -> Result<()> {
    const NAME: &str = "checksum";
    let count = x.shape.len();
    require(x.is_packed(), NAME, || "x has gaps".into())?;
    require(sum.shape.len() == 1, NAME, || format!("sum is {}", sum.shape))?;
    if count == 0 {
        return Ok(());
    }
    let (from, to) = (recorder.window(NAME, &x.flat())?, recorder.window_mut(NAME, sum)?);
    let groups = recorder.grid(NAME, count as u64, CHECKSUM.workgroup * WORDS)?;
    recorder.dispatch(Dispatch {
        entry: CHECKSUM.on(Bindings { x: from, sums: to }),
        constants: &[],
        params: Params {
            count: count as u32,
            x_offset: from.first,
            first: first as u32,
            out_offset: to.first,
        },
        groups,
    });
    Ok(())
}

/// `sum of mixed(x_i, first + i)` modulo 2^32, where `mixed` multiplies the word, crossed with a multiple of its place, by an odd
/// constant and folds the product: any single word that changes changes the sum.
pub fn checksum_of(words: impl Iterator<Item = u32>, first: u32) -> u32 {
    words.zip(0u32..).fold(0, |sum: u32, (word, i)| {
        let product = (word ^ first.wrapping_add(i).wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        sum.wrapping_add(product ^ (product >> 16))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bit_that_changes_and_any_two_words_that_change_places_change_the_sum() {
        let words: Vec<u32> = (0..100u32).map(|i| (i as f32).sin().to_bits()).collect();
        let sum = |words: &[u32]| checksum_of(words.iter().copied(), 0);
        let intact = sum(&words);
        for i in 0..words.len() {
            for bit in 0..32 {
                let mut damaged = words.clone();
                damaged[i] ^= 1 << bit;
                assert_ne!(sum(&damaged), intact, "bit {bit} of word {i}");
            }
            let mut swapped = words.clone();
            swapped.swap(i, (i + 1) % 100);
            assert_ne!(sum(&swapped), intact, "word {i} and the next");
        }
        assert_eq!(sum(&words[..40]).wrapping_add(checksum_of(words[40..].iter().copied(), 40)), intact);
    }
}
