use super::library::shaders::params::Pack as Params;
use super::library::shaders::{PACK, PACK_VEC4};
use super::recorder::{Dispatch, ELEMENTS, require};
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
    let (from, to) = (recorder.window(NAME, &src.flat())?, recorder.raw_window(NAME, dst)?);
    let fours = [from.first as usize, to.first as usize, dst.len].iter().all(|n| n.is_multiple_of(4));
    let (shader, threads) =
        if fours { (&PACK_VEC4, dst.len / 4) } else { (&PACK, dst.len.div_ceil(per_word)) };
    let groups = recorder.grid(NAME, threads as u64, ELEMENTS)?;
    let params = match fours {
        true => Params { count: threads as u32, src_offset: from.first / 4, dst_offset: to.first / 4 },
        false => {
            Params { count: dst.len as u32, src_offset: from.first, dst_offset: to.first / per_word as u32 }
        }
    };
    recorder.dispatch(Dispatch {
        shader,
        entry: NAME,
        constants: &[("FORMAT", format(dst.dtype)), ("WORKGROUP", f64::from(ELEMENTS))],
        params,
        windows: &[(1, &from), (2, &to)],
        groups,
    });
    Ok(())
}
