use super::recorder::{Dispatch, require};
use super::shaders::copy_block::{Bindings, COPY_BLOCK, Params};
use super::shaders::copy_block_vec4;
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
    let (from, to) = (recorder.window(NAME, &src)?, recorder.window_mut(NAME, &dst)?);
    let in_fours = src.is_in_fours() && dst.is_in_fours();
    let (entry, step) = if in_fours { (&copy_block_vec4::COPY_BLOCK, 4) } else { (&COPY_BLOCK, 1) };
    let count = dst.shape.len() / step;
    let groups = recorder.grid(NAME, count as u64, entry.workgroup)?;
    let [src_offset, src_row_stride, src_batch_stride] = from.places(&src, step);
    let [dst_offset, dst_row_stride, dst_batch_stride] = to.places(&dst, step);
    recorder.dispatch(Dispatch {
        entry: entry.on(Bindings { src: from, dst: to }),
        constants: &[],
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
        groups,
    });
    Ok(())
}
