use super::recorder::{Dispatch, require};
use super::shaders::scale::{Bindings, DIVIDE, Params, SCALE};
use super::shaders::scale_vec4;
use super::{Recorder, Result, View};
use crate::matrix::Shape;

/// `x[b, i, j] *= s[b, i]`, with `s` of shape `batch x rows x 1`; a batch of 1 in `s` serves all.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn scale_rows(recorder: &mut Recorder<'_>, x: &View<'_>, s: &View<'_>) -> Result<()> {
    scale(recorder, x, s, |shape| Shape { cols: 1, ..shape }, false)
}

/// `x[b, i, j] /= s[b, i]`, with `s` of shape `batch x rows x 1`; where `s` is 0 the row becomes 0.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn divide_rows(recorder: &mut Recorder<'_>, x: &View<'_>, s: &View<'_>) -> Result<()> {
    scale(recorder, x, s, |shape| Shape { cols: 1, ..shape }, true)
}

/// `x[b, i, j] *= s[b, j]`, with `s` of shape `batch x 1 x cols`; a batch of 1 in `s` serves all.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn scale_columns(recorder: &mut Recorder<'_>, x: &View<'_>, s: &View<'_>) -> Result<()> {
    scale(recorder, x, s, |shape| Shape { rows: 1, ..shape }, false)
}

/// `x[b, i, j] *= s[b]`, with `s` of shape `batch x 1 x 1`; a batch of 1 in `s` serves all.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn scale_batches(recorder: &mut Recorder<'_>, x: &View<'_>, s: &View<'_>) -> Result<()> {
    scale(recorder, x, s, |shape| Shape { rows: 1, cols: 1, ..shape }, false)
}

fn scale(
    recorder: &mut Recorder<'_>,
    x: &View<'_>,
    s: &View<'_>,
    factors: impl Fn(Shape) -> Shape,
    divide: bool,
) -> Result<()> {
    const NAME: &str = "scale";
    let expected = factors(x.shape);
    let fits = s.shape == expected || s.shape == Shape { batch: 1, ..expected };
    require(fits, NAME, || format!("x is {}, s is {}", x.shape, s.shape))?;
    if x.shape.is_empty() {
        return Ok(());
    }
    let stride = |len: usize, stride: usize| if len > 1 { stride as u32 } else { 0 };
    let (to, from) = (recorder.window_mut(NAME, x)?, recorder.window(NAME, s)?);
    let (entry, step) = if x.is_in_fours() { (&scale_vec4::SCALE, 4) } else { (&SCALE, 1) };
    let count = x.shape.len() / step;
    let groups = recorder.grid(NAME, count as u64, entry.workgroup)?;
    let [x_offset, x_row_stride, x_batch_stride] = to.places(x, step);
    recorder.dispatch(Dispatch {
        entry: entry.on(Bindings { s: from, x: to }),
        constants: &[DIVIDE.is(divide)],
        params: Params {
            count: count as u32,
            rows: x.shape.rows as u32,
            cols: (x.shape.cols / step) as u32,
            x_offset,
            x_row_stride,
            x_batch_stride,
            s_offset: from.first,
            s_batch_stride: stride(s.shape.batch, s.batch_stride),
            s_row_stride: stride(s.shape.rows, s.row_stride),
            s_col_stride: stride(s.shape.cols, step),
            s_next: stride(s.shape.cols, 1),
        },
        groups,
    });
    Ok(())
}
