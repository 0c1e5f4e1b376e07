use super::recorder::{Dispatch, require};
use super::shaders::peak_copy::{Bindings, PEAK_COPY, Params};
use super::{Recorder, Result, View};

/// `dst = src` as fast as the device copies, for the peak that others are compared with. Both are packed, begin with their
/// buffers, and hold a multiple of four elements.
///
/// # Errors
/// If the operands are not so, or do not fit their buffers or the device's bindings.
pub fn peak_copy(recorder: &mut Recorder<'_>, src: &View<'_>, dst: &View<'_>) -> Result<()> {
    const NAME: &str = "peak_copy";
    let count = dst.shape.len();
    let fits = src.shape.len() == count && src.is_packed() && dst.is_packed() && count.is_multiple_of(4);
    require(fits, NAME, || format!("src is {}, dst is {}", src.shape, dst.shape))?;
    require(src.offset == 0 && dst.offset == 0, NAME, || "an operand does not begin with its buffer".into())?;
    if count == 0 {
        return Ok(());
    }
    let (from, to) = (recorder.window(NAME, &src.flat())?, recorder.window_mut(NAME, &dst.flat())?);
    let groups = recorder.grid(NAME, count as u64 / 4, PEAK_COPY.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: PEAK_COPY.on(Bindings { src: from, dst: to }),
        constants: &[],
        params: Params { count: (count / 4) as u32 },
        groups,
    });
    Ok(())
}
