use super::recorder::{Dispatch, require};
use super::shaders::mean_rows::{Bindings, MEAN_ROWS, Params};
use super::{Recorder, Result, View};
use crate::matrix::Shape;

/// The mean row of every segment. `starts` is `1 x 1 x (segments + 1)`, its elements unsigned integers: the first row of
/// each segment and the end of the last, none past the rows of `x`. `out` is `1 x segments x cols`.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn mean_rows(recorder: &mut Recorder<'_>, x: &View<'_>, starts: &View<'_>, out: &View<'_>) -> Result<()> {
    const NAME: &str = "mean_rows";
    let fits = x.shape.batch == 1
        && starts.shape == Shape::matrix(1, out.shape.rows + 1)
        && out.shape == Shape::matrix(out.shape.rows, x.shape.cols);
    require(fits, NAME, || format!("x is {}, starts are {}, out is {}", x.shape, starts.shape, out.shape))?;
    if out.shape.is_empty() {
        return Ok(());
    }
    let (from, list) = (recorder.window(NAME, x)?, recorder.window(NAME, starts)?);
    let to = recorder.window_mut(NAME, out)?;
    let groups = recorder.grid(NAME, out.shape.len() as u64, MEAN_ROWS.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: MEAN_ROWS.on(Bindings { x: from, starts: list, out: to }),
        constants: &[],
        params: Params {
            count: out.shape.len() as u32,
            cols: out.shape.cols as u32,
            x_rows: x.shape.rows as u32,
            x_offset: from.first,
            x_row_stride: x.row_stride as u32,
            starts_offset: list.first,
            out_offset: to.first,
            out_row_stride: out.row_stride as u32,
        },
        groups,
    });
    Ok(())
}
