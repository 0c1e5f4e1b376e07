use super::recorder::{Dispatch, require};
use super::shaders::polarize::{AMPLIFY, Bindings, FULL, POLARITY, POLARIZE, Params, REVERSED, SUPPRESS};
use super::{Recorder, Result, View};
use crate::matrix::Polarity;

/// The polarized scaling rule over all elements of each matrix, in place: `v = (v / mean v)^exponent`, turned by
/// `polarity`; the power is 0 where the mean is 0. Elements must not be negative, and matrices have no gaps.
///
/// # Errors
/// If a matrix has gaps, or the view does not fit its buffer or the device's bindings.
pub fn polarize(recorder: &mut Recorder<'_>, v: &View<'_>, exponent: f32, polarity: Polarity) -> Result<()> {
    const NAME: &str = "polarize";
    let shape = v.shape;
    require(shape.rows <= 1 || v.row_stride == shape.cols, NAME, || "v has gaps".into())?;
    if shape.is_empty() {
        return Ok(());
    }
    let polarity = match polarity {
        Polarity::Full => FULL,
        Polarity::Amplify => AMPLIFY,
        Polarity::Suppress => SUPPRESS,
        Polarity::Reversed => REVERSED,
    };
    let window = recorder.window_mut(NAME, v)?;
    let groups = recorder.grid(NAME, shape.batch as u64, 1)?;
    recorder.dispatch(Dispatch {
        entry: POLARIZE.on(Bindings { v: window }),
        constants: &[POLARITY.is(polarity)],
        params: Params {
            batch: shape.batch as u32,
            count: shape.matrix_len() as u32,
            offset: window.first,
            batch_stride: v.batch_stride as u32,
            exponent,
        },
        groups,
    });
    Ok(())
}
