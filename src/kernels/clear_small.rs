use super::recorder::{Dispatch, require};
use super::shaders::clear_small::{Bindings, CLEAR_SMALL, Params};
use super::{Recorder, Result, View};

/// The null cut over all elements of each matrix, in place: `x = 0` where `x <= fraction * max x`, with a maximum of at least
/// 0. Matrices have no gaps.
///
/// # Errors
/// If a matrix has gaps, or the view does not fit its buffer or the device's bindings.
pub fn clear_small(recorder: &mut Recorder<'_>, x: &View<'_>, fraction: f32) -> Result<()> {
    const NAME: &str = "clear_small";
    let shape = x.shape;
    require(shape.rows <= 1 || x.row_stride == shape.cols, NAME, || "x has gaps".into())?;
    if shape.is_empty() {
        return Ok(());
    }
    let window = recorder.window_mut(NAME, x)?;
    let groups = recorder.grid(NAME, shape.batch as u64, 1)?;
    recorder.dispatch(Dispatch {
        entry: CLEAR_SMALL.on(Bindings { x: window }),
        constants: &[],
        params: Params {
            batch: shape.batch as u32,
            count: shape.matrix_len() as u32,
            offset: window.first,
            batch_stride: x.batch_stride as u32,
            fraction,
        },
        groups,
    });
    Ok(())
}
