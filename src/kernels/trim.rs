use super::recorder::{Dispatch, require};
use super::shaders::trim::{Params, TRIM, TRIM_BY, Trim, TrimBy};
use super::{Recorder, Result, View};
use crate::matrix::Cut;

/// Keeps the numbers of the packed `x` that lie before `keep` and not before `drop` in the order of magnitudes, and makes the
/// others zero. The magnitudes are those of `by`, if it is given, in place of `x`'s. The first number has the place `first`.
///
/// # Errors
/// If the shapes differ, or a view has gaps or does not fit its buffer or the device's bindings.
pub fn trim(
    recorder: &mut Recorder<'_>,
    x: &View<'_>,
    by: Option<&View<'_>>,
    first: usize,
    (keep, drop): (Cut, Cut),
) -> Result<()> {
    const NAME: &str = "trim";
    let fits = x.is_packed() && by.is_none_or(|by| by.is_packed() && by.shape == x.shape);
    require(fits, NAME, || "x and the magnitudes differ in shape, or have gaps".into())?;
    let count = x.shape.len();
    if count == 0 {
        return Ok(());
    }
    let to = recorder.window_mut(NAME, &x.flat())?;
    let from = by.map(|by| recorder.window(NAME, &by.flat())).transpose()?;
    let groups = recorder.grid(NAME, count as u64, TRIM.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: match from {
            Some(by) => TRIM_BY.on(TrimBy { x: to, by }),
            None => TRIM.on(Trim { x: to }),
        },
        constants: &[],
        params: Params {
            count: count as u32,
            x_offset: to.first,
            by_offset: from.map_or(0, |from| from.first),
            first: first as u32,
            keep_bits: keep.bits,
            keep_places: keep.places,
            drop_bits: drop.bits,
            drop_places: drop.places,
        },
        groups,
    });
    Ok(())
}
