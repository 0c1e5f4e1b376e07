use super::library::shaders::COPY_BLOCK;
use super::recorder::{Dispatch, ELEMENTS, require};
use super::{Recorder, Result, View};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    count: u32,
    rows: u32,
    cols: u32,
    src_offset: u32,
    src_row_stride: u32,
    src_batch_stride: u32,
    dst_offset: u32,
    dst_row_stride: u32,
    dst_batch_stride: u32,
}

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
    let (from, to) = (recorder.window(NAME, src)?, recorder.window(NAME, dst)?);
    let groups = recorder.grid(NAME, dst.shape.len() as u64, ELEMENTS)?;
    recorder.dispatch(Dispatch {
        shader: &COPY_BLOCK,
        entry: NAME,
        constants: &[("WORKGROUP", f64::from(ELEMENTS))],
        params: Params {
            count: dst.shape.len() as u32,
            rows: dst.shape.rows as u32,
            cols: dst.shape.cols as u32,
            src_offset: from.first,
            src_row_stride: src.row_stride as u32,
            src_batch_stride: src.batch_stride as u32,
            dst_offset: to.first,
            dst_row_stride: dst.row_stride as u32,
            dst_batch_stride: dst.batch_stride as u32,
        },
        windows: &[(1, &from), (2, &to)],
        groups,
    });
    Ok(())
}
