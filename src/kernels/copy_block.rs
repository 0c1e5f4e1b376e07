use super::library::shaders::params::CopyBlock as Params;
use super::library::shaders::{COPY_BLOCK, COPY_BLOCK_VEC4};
use super::recorder::{Dispatch, ELEMENTS, require};
use super::{Recorder, Result, View};

/// `dst = src`, bit by bit, between any two layouts.
///
/// # Errors
/// If the shapes differ, or a view does not fit its buffer or the device's bindings.
pub fn copy_block(recorder: &mut Recorder<'_>, src: &View<'_>, dst: &View<'_>) -> Result<()> {
    const NAME: &str = "copy_block";
    require(src.shape == dst.shape, NAME, || format!("src is {}, dst is {}", src.shape, dst.shape))?;
    if dst.shape.is_empty() {
        return Ok(());
    }
    let (src, dst) = if src.is_packed() && dst.is_packed() { (src.flat(), dst.flat()) } else { (*src, *dst) };
    let (from, to) = (recorder.window(NAME, &src)?, recorder.window(NAME, &dst)?);
    let in_fours = src.is_in_fours() && dst.is_in_fours();
    let (shader, step) = if in_fours { (&COPY_BLOCK_VEC4, 4) } else { (&COPY_BLOCK, 1) };
    let count = dst.shape.len() / step;
    let groups = recorder.grid(NAME, count as u64, ELEMENTS)?;
    let [src_offset, src_row_stride, src_batch_stride] = from.places(&src, step);
    let [dst_offset, dst_row_stride, dst_batch_stride] = to.places(&dst, step);
    recorder.dispatch(Dispatch {
        shader,
        entry: NAME,
        constants: &[("WORKGROUP", f64::from(ELEMENTS))],
        params: Params {
            count: count as u32,
            rows: dst.shape.rows as u32,
            cols: (dst.shape.cols / step) as u32,
            src_offset,
            src_row_stride,
            src_batch_stride,
            dst_offset,
            dst_row_stride,
            dst_batch_stride,
        },
        windows: &[(1, &from), (2, &to)],
        groups,
    });
    Ok(())
}
