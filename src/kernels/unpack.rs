use super::recorder::{Dispatch, require};
use super::shaders::unpack::{BF16, Bindings, F16, F32, FORMAT, Params, UNPACK};
use super::shaders::{unpack_f16, unpack_vec4};
use super::{Raw, Recorder, Result, View};
use crate::matrix::Dtype;

/// The number by which the shaders know a type.
pub(super) fn format(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => F32,
        Dtype::F16 => F16,
        Dtype::Bf16 => BF16,
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
    let (from, to) = (recorder.raw_window(NAME, src)?, recorder.window_mut(NAME, &dst.flat())?);
    let fours = [from.first as usize, to.first as usize, src.len].iter().all(|n| n.is_multiple_of(4));
    let per_word = 4 / src.dtype.size();
    // An odd start adds a word.
    let words = (src.len + from.first as usize % per_word).div_ceil(per_word);
    let by_device = fours && src.dtype == Dtype::F16 && recorder.kernels().half_floats();
    let (step, threads) = if fours { (4, src.len / 4) } else { (1, words) };
    let groups = recorder.grid(NAME, threads as u64, UNPACK.workgroup)?;
    let bindings = Bindings { src: from, dst: to };
    let params =
        Params { count: src.len as u32 / step, src_offset: from.first / step, dst_offset: to.first / step };
    if by_device {
        let entry = unpack_f16::UNPACK_F16.on(bindings);
        recorder.dispatch(Dispatch { entry, constants: &[], params, groups });
    } else {
        let entry = if fours { unpack_vec4::UNPACK } else { UNPACK }.on(bindings);
        recorder.dispatch(Dispatch { entry, constants: &[FORMAT.is(format(src.dtype))], params, groups });
    }
    Ok(())
}
