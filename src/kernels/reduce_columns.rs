use super::recorder::{Dispatch, require};
use super::shaders::reduce_columns::{Bindings, Params, REDUCE_COLUMNS, ROOT, TERMS};
use super::shaders::reduce_columns_vec4;
use super::{Recorder, Result, Terms, View};
use crate::matrix::Shape;

/// Rows that one step had better add up at once: a longer column is cut into chunks of so many, and a second step, of
/// [`Terms::Sums`], adds the chunks up.
pub fn column_chunk(rows: usize) -> usize {
    if rows <= 128 { 128 } else { rows.div_ceil(64).max(64) }
}

/// `out[b, c, j]` is the sum of the terms of column `j` of matrix `b` over its `c`-th chunk of `chunk` rows; with `root`,
/// its square root. `out` has a row for each chunk, and at least one. Column norms are [`Terms::Squares`] with `root`
/// and a chunk as long as the column.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn reduce_columns(
    recorder: &mut Recorder<'_>,
    x: &View<'_>,
    terms: Terms<'_>,
    chunk: usize,
    root: bool,
    out: &View<'_>,
) -> Result<()> {
    const NAME: &str = "reduce_columns";
    let y = if let Terms::Products(y) = terms { y } else { *x };
    let chunk = chunk.max(1);
    let chunks = x.shape.rows.div_ceil(chunk).max(1);
    let fits = x.shape == y.shape && out.shape == Shape { rows: chunks, ..x.shape };
    require(fits, NAME, || format!("x is {}, y is {}, out is {}", x.shape, y.shape, out.shape))?;
    if out.shape.is_empty() {
        return Ok(());
    }
    let in_fours = [x, &y, out].into_iter().all(View::is_in_fours);
    let (entry, step) =
        if in_fours { (&reduce_columns_vec4::REDUCE_COLUMNS, 4) } else { (&REDUCE_COLUMNS, 1) };
    let across = (x.shape.cols / step).div_ceil(entry.workgroup as usize);
    let count = (across * chunks * x.shape.batch) as u64;
    let groups = recorder.grid(NAME, count, 1)?;
    let (from_x, from_y) = (recorder.window(NAME, x)?, recorder.window(NAME, &y)?);
    let to = recorder.window_mut(NAME, out)?;
    let [x_offset, x_row_stride, x_batch_stride] = from_x.places(x, step);
    let [y_offset, y_row_stride, y_batch_stride] = from_y.places(&y, step);
    let [out_offset, out_row_stride, out_batch_stride] = to.places(out, step);
    recorder.dispatch(Dispatch {
        entry: entry.on(Bindings { x: from_x, y: from_y, out: to }),
        constants: &[TERMS.is(terms.code()), ROOT.is(root)],
        params: Params {
            rows: x.shape.rows as u32,
            cols: (x.shape.cols / step) as u32,
            chunks: chunks as u32,
            chunk: chunk as u32,
            groups: count as u32,
            x_offset,
            x_row_stride,
            x_batch_stride,
            y_offset,
            y_row_stride,
            y_batch_stride,
            out_offset,
            out_row_stride,
            out_batch_stride,
        },
        groups,
    });
    Ok(())
}
