use super::recorder::{Dispatch, require};
use super::shaders::transpose::{Bindings, Params, SIDE, TRANSPOSE};
use super::{Recorder, Result, View};
use crate::matrix::Shape;

/// `dst[b, j, i] = src[b, i, j]`, bit by bit.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn transpose(recorder: &mut Recorder<'_>, src: &View<'_>, dst: &View<'_>) -> Result<()> {
    const NAME: &str = "transpose";
    let Shape { batch, rows, cols } = src.shape;
    let fits = dst.shape == Shape::new(batch, cols, rows);
    require(fits, NAME, || format!("src is {}, dst is {}", src.shape, dst.shape))?;
    if dst.shape.is_empty() {
        return Ok(());
    }
    let (from, to) = (recorder.window(NAME, src)?, recorder.window_mut(NAME, dst)?);
    let side = SIDE as usize;
    let across = cols.div_ceil(side);
    let tiles = across * rows.div_ceil(side);
    let groups = recorder.grid(NAME, (batch * tiles) as u64, 1)?;
    let [src_offset, src_row_stride, src_batch_stride] = from.places(src, 1);
    let [dst_offset, dst_row_stride, dst_batch_stride] = to.places(dst, 1);
    recorder.dispatch(Dispatch {
        entry: TRANSPOSE.on(Bindings { src: from, dst: to }),
        constants: &[],
        params: Params {
            rows: rows as u32,
            cols: cols as u32,
            across: across as u32,
            tiles: tiles as u32,
            groups: (batch * tiles) as u32,
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
