use super::recorder::{Dispatch, require};
use super::shaders::magnitude_sums::{Bindings, MAGNITUDE_SUMS, Params};
use super::{Recorder, Result, View};

/// Pieces of sums that [`magnitude_sums`] adds to: for each of 256 exponents three pieces of 8 bits.
pub const MAGNITUDE_PIECES: usize = 768;

/// Numbers after which a piece may outgrow its 32 bits.
pub const MOST_MAGNITUDES: usize = 1 << 24;

/// Numbers of a thread.
const EACH: u32 = 64;
/// Adds the magnitudes of the packed `x`, at most [`MOST_MAGNITUDES`], to the [`MAGNITUDE_PIECES`] of `sums`, exactly:
/// [`magnitude_sum`] puts them together.
///
/// # Errors
/// If a view has gaps or does not fit its buffer or the device's bindings.
pub fn magnitude_sums(recorder: &mut Recorder<'_>, x: &View<'_>, sums: &View<'_>) -> Result<()> {
    const NAME: &str = "magnitude_sums";
    let count = x.shape.len();
    let fits = count <= MOST_MAGNITUDES && sums.shape.len() == MAGNITUDE_PIECES;
    require(fits && x.is_packed() && sums.is_packed(), NAME, || format!("x is {}", x.shape))?;
    if count == 0 {
        return Ok(());
    }
    let (from, to) = (recorder.window(NAME, &x.flat())?, recorder.window_mut(NAME, &sums.flat())?);
    let groups = recorder.grid(NAME, count as u64, MAGNITUDE_SUMS.workgroup * EACH)?;
    recorder.dispatch(Dispatch {
        entry: MAGNITUDE_SUMS.on(Bindings { x: from, sums: to }),
        constants: &[],
        params: Params { count: count as u32, x_offset: from.first, out_offset: to.first, each: EACH },
        groups,
    });
    Ok(())
}

/// The sum that pieces stand for, each in as many bits as it needs: exact up to the last, rounded steps, which do not depend on
/// how the numbers were dealt out.
pub fn magnitude_sum(pieces: &[u64]) -> f64 {
    let of_exponent = |(exponent, pieces): (usize, &[u64])| {
        let integers = pieces.iter().rev().fold(0u128, |sum, &piece| (sum << 8) + u128::from(piece));
        // subnormals have the exponent of the smallest normal numbers
        integers as f64 * 2f64.powi(exponent.max(1) as i32 - 150)
    };
    pieces.chunks(3).enumerate().rev().map(of_exponent).sum()
}
