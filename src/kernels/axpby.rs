use super::recorder::{Dispatch, require};
use super::shaders::axpby::{AXPBY, Bindings, Params};
use super::shaders::axpby_vec4;
use super::{Recorder, Result, View};

/// `y = alpha x + beta y`. With `beta = 0` what `y` held is not read, NaN included. One `x` may stand for all members of
/// the batch ([`View::repeated`]).
///
/// # Errors
/// If the shapes differ, or a view does not fit its buffer or the device's bindings.
pub fn axpby(recorder: &mut Recorder<'_>, alpha: f32, x: &View<'_>, beta: f32, y: &View<'_>) -> Result<()> {
    const NAME: &str = "axpby";
    require(x.shape == y.shape, NAME, || format!("x is {}, y is {}", x.shape, y.shape))?;
    if y.shape.is_empty() {
        return Ok(());
    }
    let (x, y) = if x.is_packed() && y.is_packed() { (x.flat(), y.flat()) } else { (*x, *y) };
    let (from, to) = (recorder.window(NAME, &x)?, recorder.window_mut(NAME, &y)?);
    let (entry, step) =
        if x.is_in_fours() && y.is_in_fours() { (&axpby_vec4::AXPBY, 4) } else { (&AXPBY, 1) };
    let count = y.shape.len() / step;
    let groups = recorder.grid(NAME, count as u64, entry.workgroup)?;
    let [x_offset, x_row_stride, x_batch_stride] = from.places(&x, step);
    let [y_offset, y_row_stride, y_batch_stride] = to.places(&y, step);
    recorder.dispatch(Dispatch {
        entry: entry.on(Bindings { x: from, y: to }),
        constants: &[],
        params: Params {
            count: count as u32,
            rows: y.shape.rows as u32,
            cols: (y.shape.cols / step) as u32,
            x_offset,
            x_row_stride,
            x_batch_stride,
            y_offset,
            y_row_stride,
            y_batch_stride,
            alpha,
            beta,
        },
        groups,
    });
    Ok(())
}
