use super::recorder::{Dispatch, require};
use super::shaders::reduce_rows::{Bindings, PRODUCTS, Params, REDUCE_ROWS, ROOT, SQUARES, SUMS, TERMS};
use super::shaders::{reduce_rows_subgroup, reduce_rows_vec4, reduce_rows_vec4_subgroup};
use super::{Recorder, Result, View};
use crate::matrix::Shape;

/// What is added up.
#[derive(Clone, Copy)]
pub enum Terms<'a> {
    /// `x y`
    Products(View<'a>),
    /// `x^2`; a root of their sum is right wherever f32 has it, whether or not it has the squares.
    Squares,
    /// `x`
    Sums,
}

impl Terms<'_> {
    /// The number by which the shaders know it.
    pub(super) fn code(&self) -> u32 {
        match self {
            Terms::Products(_) => PRODUCTS,
            Terms::Squares => SQUARES,
            Terms::Sums => SUMS,
        }
    }
}

/// Columns that one step had better add up at once: a longer row is cut into chunks of so many, and a second step, of
/// [`Terms::Sums`], adds the chunks up; for norms both are of [`Terms::Squares`] with a root.
pub fn row_chunk(cols: usize) -> usize {
    cols.div_ceil(4096).max(4096)
}

/// `out[b, i, c]` is the sum of the terms of row `i` of matrix `b` over its `c`-th chunk of `chunk` columns; with `root`,
/// its square root. `out` has a column for each chunk, and at least one. Row norms are [`Terms::Squares`] with `root`
/// and a chunk as long as the row.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn reduce_rows(
    recorder: &mut Recorder<'_>,
    x: &View<'_>,
    terms: Terms<'_>,
    chunk: usize,
    root: bool,
    out: &View<'_>,
) -> Result<()> {
    const NAME: &str = "reduce_rows";
    let y = if let Terms::Products(y) = terms { y } else { *x };
    let chunk = chunk.min(x.shape.cols).max(1);
    let chunks = x.shape.cols.div_ceil(chunk).max(1);
    let fits = x.shape == y.shape && out.shape == Shape { cols: chunks, ..x.shape };
    require(fits, NAME, || format!("x is {}, y is {}, out is {}", x.shape, y.shape, out.shape))?;
    if out.shape.is_empty() {
        return Ok(());
    }
    let workgroup = if chunk > 1024 { 256 } else { 64 };
    let groups = recorder.grid(NAME, out.shape.len() as u64, 1)?;
    let (from_x, from_y) = (recorder.window(NAME, x)?, recorder.window(NAME, &y)?);
    let to = recorder.window_mut(NAME, out)?;
    let in_fours = x.is_in_fours() && y.is_in_fours() && chunk.is_multiple_of(4);
    let (entry, step) = match (in_fours, recorder.kernels().subgroups()) {
        (true, true) => (&reduce_rows_vec4_subgroup::REDUCE_ROWS, 4),
        (true, false) => (&reduce_rows_vec4::REDUCE_ROWS, 4),
        (false, true) => (&reduce_rows_subgroup::REDUCE_ROWS, 1),
        (false, false) => (&REDUCE_ROWS, 1),
    };
    let [x_offset, x_row_stride, x_batch_stride] = from_x.places(x, step);
    let [y_offset, y_row_stride, y_batch_stride] = from_y.places(&y, step);
    let [out_offset, out_row_stride, out_batch_stride] = to.places(out, 1);
    recorder.dispatch(Dispatch {
        entry: entry.on(Bindings { x: from_x, y: from_y, out: to }),
        constants: &[entry.workgroup.is(workgroup), TERMS.is(terms.code()), ROOT.is(root)],
        params: Params {
            rows: x.shape.rows as u32,
            cols: (x.shape.cols / step) as u32,
            chunks: chunks as u32,
            chunk: (chunk / step) as u32,
            groups: out.shape.len() as u32,
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
