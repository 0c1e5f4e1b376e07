use super::library::shaders::PEAK_COPY;
use super::library::shaders::params::PeakCopy as Params;
use super::recorder::{Dispatch, ELEMENTS, require};
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
    let (from, to) = (recorder.window(NAME, &src.flat())?, recorder.window(NAME, &dst.flat())?);
    let groups = recorder.grid(NAME, count as u64 / 4, ELEMENTS)?;
    recorder.dispatch(Dispatch {
        shader: &PEAK_COPY,
        entry: NAME,
        constants: &[("WORKGROUP", f64::from(ELEMENTS))],
        params: Params { count: (count / 4) as u32 },
        windows: &[(1, &from), (2, &to)],
        groups,
    });
    Ok(())
}
