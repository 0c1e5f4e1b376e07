use super::recorder::{Dispatch, require};
use super::shaders::rotary::{Bindings, Params, ROTARY};
use super::{Recorder, Result, View};
use crate::matrix::Shape;

/// In every head of row `i`, turns the pair `(x_j, x_(j + h))` by the angle whose cosine and sine are `cos[i, j]` and
/// `sin[i, j]`. The tables are `1 x rows x h`; what a head has beyond its first `2 h` columns stays. The columns of `x` are a
/// multiple of `head_dim`.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn rotary(
    recorder: &mut Recorder<'_>,
    x: &View<'_>,
    cos: &View<'_>,
    sin: &View<'_>,
    head_dim: usize,
) -> Result<()> {
    const NAME: &str = "rotary";
    let half = cos.shape.cols;
    let heads = half > 0 && head_dim >= 2 * half && x.shape.cols.is_multiple_of(head_dim);
    let fits = heads && cos.shape == Shape::matrix(x.shape.rows, half) && sin.shape == cos.shape;
    require(fits && x.shape.batch == 1, NAME, || format!("x is {}, cos is {}", x.shape, cos.shape))?;
    if x.shape.is_empty() {
        return Ok(());
    }
    let (to, c, s) =
        (recorder.window_mut(NAME, x)?, recorder.window(NAME, cos)?, recorder.window(NAME, sin)?);
    let pairs = x.shape.cols / head_dim * half;
    let count = x.shape.rows * pairs;
    let groups = recorder.grid(NAME, count as u64, ROTARY.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: ROTARY.on(Bindings { cosines: c, sines: s, x: to }),
        constants: &[],
        params: Params {
            count: count as u32,
            pairs: pairs as u32,
            half: half as u32,
            head_dim: head_dim as u32,
            x_offset: to.first,
            x_row_stride: x.row_stride as u32,
            cos_offset: c.first,
            cos_row_stride: cos.row_stride as u32,
            sin_offset: s.first,
            sin_row_stride: sin.row_stride as u32,
        },
        groups,
    });
    Ok(())
}
