use super::library::shaders::params::Scale as Params;
use super::library::shaders::{SCALE, SCALE_VEC4};
use super::recorder::{Dispatch, ELEMENTS, require};
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
    let (to, from) = (recorder.window(NAME, x)?, recorder.window(NAME, s)?);
    let (shader, step) = if x.is_in_fours() { (&SCALE_VEC4, 4) } else { (&SCALE, 1) };
    let count = x.shape.len() / step;
    let groups = recorder.grid(NAME, count as u64, ELEMENTS)?;
    let [x_offset, x_row_stride, x_batch_stride] = to.places(x, step);
    recorder.dispatch(Dispatch {
        shader,
        entry: NAME,
        constants: &[("WORKGROUP", f64::from(ELEMENTS)), ("DIVIDE", f64::from(u8::from(divide)))],
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
        windows: &[(1, &from), (2, &to)],
        groups,
    });
    Ok(())
}
