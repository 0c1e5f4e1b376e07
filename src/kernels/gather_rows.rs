use super::recorder::{Dispatch, require};
use super::shaders::gather_rows::{Bindings, GATHER_ROWS, Params};
use super::{Recorder, Result, View};
use crate::matrix::Shape;

/// `out[i, :] = x[rows[i], :]`. `rows` is `1 x 1 x n`, its elements unsigned integers below the rows of `x`.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn gather_rows(recorder: &mut Recorder<'_>, x: &View<'_>, rows: &View<'_>, out: &View<'_>) -> Result<()> {
    const NAME: &str = "gather_rows";
    let n = rows.shape.cols;
    let fits = x.shape.batch == 1 && rows.shape == Shape::matrix(1, n);
    let fits = fits && out.shape == Shape::matrix(n, x.shape.cols);
    require(fits, NAME, || format!("x is {}, rows are {}, out is {}", x.shape, rows.shape, out.shape))?;
    require(out.shape.is_empty() || x.shape.rows > 0, NAME, || "there is no row to gather".into())?;
    if out.shape.is_empty() {
        return Ok(());
    }
    let (from, list) = (recorder.window(NAME, x)?, recorder.window(NAME, rows)?);
    let to = recorder.window_mut(NAME, out)?;
    let groups = recorder.grid(NAME, out.shape.len() as u64, GATHER_ROWS.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: GATHER_ROWS.on(Bindings { x: from, rows: list, out: to }),
        constants: &[],
        params: Params {
            count: out.shape.len() as u32,
            cols: x.shape.cols as u32,
            x_rows: x.shape.rows as u32,
            x_offset: from.first,
            x_row_stride: x.row_stride as u32,
            rows_offset: list.first,
            out_offset: to.first,
            out_row_stride: out.row_stride as u32,
        },
        groups,
    });
    Ok(())
}
