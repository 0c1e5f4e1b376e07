use super::library::shaders::AXPBY;
use super::recorder::{Dispatch, ELEMENTS, require};
use super::{Recorder, Result, View};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    count: u32,
    rows: u32,
    cols: u32,
    x_offset: u32,
    x_row_stride: u32,
    x_batch_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_batch_stride: u32,
    alpha: f32,
    beta: f32,
}

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
    let (from, to) = (recorder.window(NAME, &x)?, recorder.window(NAME, &y)?);
    let groups = recorder.grid(NAME, y.shape.len() as u64, ELEMENTS)?;
    recorder.dispatch(Dispatch {
        shader: &AXPBY,
        entry: NAME,
        constants: &[("WORKGROUP", f64::from(ELEMENTS))],
        params: Params {
            count: y.shape.len() as u32,
            rows: y.shape.rows as u32,
            cols: y.shape.cols as u32,
            x_offset: from.first,
            x_row_stride: x.row_stride as u32,
            x_batch_stride: x.batch_stride as u32,
            y_offset: to.first,
            y_row_stride: y.row_stride as u32,
            y_batch_stride: y.batch_stride as u32,
            alpha,
            beta,
        },
        windows: &[(1, &from), (2, &to)],
        groups,
    });
    Ok(())
}
