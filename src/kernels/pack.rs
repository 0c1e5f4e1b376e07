use super::recorder::{Dispatch, WindowMut, require};
use super::shaders::pack::{Bindings, FORMAT, PACK, Params};
use super::shaders::pack_vec4;
use super::unpack::format;
use super::{Raw, Recorder, Result, View};

/// Rounds f32 to stored numbers, to nearest, ties to even: subnormals too; what is too large becomes infinity, NaN stays
/// NaN. `src` must be packed, and `dst` start on a 32-bit word; an odd number of 16-bit values leaves the other half of
/// the last word as it was.
///
/// # Errors
/// If the lengths differ, `src` has gaps, or an operand does not fit its buffer or the device's bindings.
pub fn pack(recorder: &mut Recorder<'_>, src: &View<'_>, dst: &Raw<'_>) -> Result<()> {
    const NAME: &str = "pack";
    require(dst.len == src.shape.len(), NAME, || format!("{} into {} numbers", src.shape, dst.len))?;
    require(src.is_packed(), NAME, || "src has gaps".into())?;
    let per_word = 4 / dst.dtype.size();
    require(dst.offset.is_multiple_of(per_word as u64), NAME, || {
        format!("dst starts at number {}, in the middle of a word", dst.offset)
    })?;
    if dst.len == 0 {
        return Ok(());
    }
    let (from, to) = (recorder.window(NAME, &src.flat())?, recorder.raw_window(NAME, dst).map(WindowMut)?);
    let fours = [from.first as usize, to.first as usize, dst.len].iter().all(|n| n.is_multiple_of(4));
    let (entry, threads) =
        if fours { (&pack_vec4::PACK, dst.len / 4) } else { (&PACK, dst.len.div_ceil(per_word)) };
    let groups = recorder.grid(NAME, threads as u64, entry.workgroup)?;
    let params = match fours {
        true => Params { count: threads as u32, src_offset: from.first / 4, dst_offset: to.first / 4 },
        false => {
            Params { count: dst.len as u32, src_offset: from.first, dst_offset: to.first / per_word as u32 }
        }
    };
    recorder.dispatch(Dispatch {
        entry: entry.on(Bindings { src: from, dst: to }),
        constants: &[FORMAT.is(format(dst.dtype))],
        params,
        groups,
    });
    Ok(())
}
