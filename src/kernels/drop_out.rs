use super::recorder::{Dispatch, require};
use super::shaders::drop_out::{DROP_OUT, DROP_OUT_BY_RANK, DropOut, DropOutByRank, Params};
use super::{Recorder, Result, View};
use crate::matrix::Chance;

/// Keeps each number of the packed `x` with a probability, and makes the others zero; the first has the place `first` in its
/// tensor. The probability rises with `ranks`, if they are given, of rows of `cols` numbers. The same numbers stay on every device.
///
/// # Errors
/// If the shapes differ, or a view has gaps or does not fit its buffer or the device's bindings.
pub fn drop_out(
    recorder: &mut Recorder<'_>,
    x: &View<'_>,
    ranks: Option<(&View<'_>, usize)>,
    first: usize,
    chance: Chance,
) -> Result<()> {
    const NAME: &str = "drop_out";
    let fits = x.is_packed() && ranks.is_none_or(|(r, _)| r.is_packed() && r.shape == x.shape);
    require(fits, NAME, || "x and the ranks differ in shape, or have gaps".into())?;
    let count = x.shape.len();
    if count == 0 {
        return Ok(());
    }
    let to = recorder.window_mut(NAME, &x.flat())?;
    let from = ranks.map(|(ranks, _)| recorder.window(NAME, &ranks.flat())).transpose()?;
    let groups = recorder.grid(NAME, count as u64, DROP_OUT.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: match from {
            Some(ranks) => DROP_OUT_BY_RANK.on(DropOutByRank { x: to, ranks }),
            None => DROP_OUT.on(DropOut { x: to }),
        },
        constants: &[],
        params: Params {
            count: count as u32,
            x_offset: to.first,
            ranks_offset: from.map_or(0, |from| from.first),
            first: first as u32,
            key_low: chance.key as u32,
            key_high: (chance.key >> 32) as u32,
            least: chance.least,
            span: chance.span,
            cols: ranks.map_or(0, |(_, cols)| cols as u32),
        },
        groups,
    });
    Ok(())
}
