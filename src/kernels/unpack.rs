use super::library::shaders::params::Unpack as Params;
use super::library::shaders::{UNPACK, UNPACK_F16, UNPACK_VEC4};
use super::recorder::{Dispatch, ELEMENTS, require};
use super::{Raw, Recorder, Result, View};
use crate::matrix::Dtype;

/// The number by which `unpack.wgsl` and `pack.wgsl` know a type.
pub(super) fn format(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 0.0,
        Dtype::F16 => 1.0,
        Dtype::Bf16 => 2.0,
    }
}

/// Widens stored numbers to f32, exactly, subnormals and the payload of a NaN included. `dst` must be packed.
///
/// # Errors
/// If the lengths differ, `dst` has gaps, or an operand does not fit its buffer or the device's bindings.
pub fn unpack(recorder: &mut Recorder<'_>, src: &Raw<'_>, dst: &View<'_>) -> Result<()> {
    const NAME: &str = "unpack";
    require(src.len == dst.shape.len(), NAME, || format!("{} numbers into {}", src.len, dst.shape))?;
    require(dst.is_packed(), NAME, || "dst has gaps".into())?;
    if src.len == 0 {
        return Ok(());
    }
    let (from, to) = (recorder.raw_window(NAME, src)?, recorder.window(NAME, &dst.flat())?);
    let fours = [from.first as usize, to.first as usize, src.len].iter().all(|n| n.is_multiple_of(4));
    let per_word = 4 / src.dtype.size();
    // An odd start adds a word.
    let words = (src.len + from.first as usize % per_word).div_ceil(per_word);
    let (shader, step, threads) = if fours { (&UNPACK_VEC4, 4, src.len / 4) } else { (&UNPACK, 1, words) };
    let groups = recorder.grid(NAME, threads as u64, ELEMENTS)?;
    let workgroup = ("WORKGROUP", f64::from(ELEMENTS));
    let by_device = fours && src.dtype == Dtype::F16 && recorder.kernels().half_floats();
    let (shader, entry, constants) = match by_device {
        true => (&UNPACK_F16, "unpack_f16", &[workgroup][..]),
        false => (shader, NAME, &[workgroup, ("FORMAT", format(src.dtype))][..]),
    };
    recorder.dispatch(Dispatch {
        shader,
        entry,
        constants,
        params: Params {
            count: src.len as u32 / step,
            src_offset: from.first / step,
            dst_offset: to.first / step,
        },
        windows: &[(1, &from), (2, &to)],
        groups,
    });
    Ok(())
}
