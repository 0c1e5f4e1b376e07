use super::recorder::{Dispatch, require};
use super::shaders::patches::{Bindings, PATCHES, Params};
use super::{Recorder, Result, View};
use crate::matrix::Shape;

/// Non-overlapping square patches of `size x size` as rows. `images` is `(samples * channels) x height x width`, `out`
/// `1 x (samples * patches) x (channels * size * size)`.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn patches(
    recorder: &mut Recorder<'_>,
    images: &View<'_>,
    channels: usize,
    size: usize,
    out: &View<'_>,
) -> Result<()> {
    const NAME: &str = "patches";
    let Shape { batch, rows, cols } = images.shape;
    let whole = channels > 0 && size > 0 && batch.is_multiple_of(channels);
    let (down, across) = if whole { (rows / size, cols / size) } else { (0, 0) };
    let fits = whole && out.shape == Shape::matrix(batch / channels * down * across, channels * size * size);
    require(fits, NAME, || format!("images are {}, out is {}", images.shape, out.shape))?;
    if out.shape.is_empty() {
        return Ok(());
    }
    let (from, to) = (recorder.window(NAME, images)?, recorder.window_mut(NAME, out)?);
    let groups = recorder.grid(NAME, out.shape.len() as u64, PATCHES.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: PATCHES.on(Bindings { images: from, out: to }),
        constants: &[],
        params: Params {
            count: out.shape.len() as u32,
            cols: out.shape.cols as u32,
            channels: channels as u32,
            size: size as u32,
            across: across as u32,
            patches: (down * across) as u32,
            images_offset: from.first,
            images_row_stride: images.row_stride as u32,
            images_batch_stride: images.batch_stride as u32,
            out_offset: to.first,
            out_row_stride: out.row_stride as u32,
        },
        groups,
    });
    Ok(())
}
