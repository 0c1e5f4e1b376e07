use super::recorder::{Dispatch, require};
use super::shaders::layer_norm::{Bindings, LAYER_NORM, Params, RMS};
use super::shaders::layer_norm_vec4;
use super::{Recorder, Result, View};
use crate::matrix::Shape;

/// `out = (x - mean) / sqrt(variance + epsilon) * weight + bias` in every row; without a bias, the RMS norm
/// `x / sqrt(mean(x^2) + epsilon) * weight`. `x` and `out` are one matrix, `weight` and `bias` one row.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn layer_norm(
    recorder: &mut Recorder<'_>,
    x: &View<'_>,
    weight: &View<'_>,
    bias: Option<&View<'_>>,
    epsilon: f32,
    out: &View<'_>,
) -> Result<()> {
    const NAME: &str = "layer_norm";
    let row = Shape::matrix(1, x.shape.cols);
    let rms = bias.is_none();
    let bias = bias.unwrap_or(weight);
    let fits = x.shape.batch == 1 && out.shape == x.shape && weight.shape == row && bias.shape == row;
    require(fits, NAME, || format!("x is {}, weight is {}, out is {}", x.shape, weight.shape, out.shape))?;
    if x.shape.is_empty() {
        return Ok(());
    }
    let workgroup = if x.shape.cols > 1024 { 256 } else { 64 };
    let (from, to) = (recorder.window(NAME, x)?, recorder.window_mut(NAME, out)?);
    let (w, b) = (recorder.window(NAME, weight)?, recorder.window(NAME, bias)?);
    let in_fours = [x, weight, bias, out].into_iter().all(View::is_in_fours);
    let (entry, step) = if in_fours { (&layer_norm_vec4::LAYER_NORM, 4) } else { (&LAYER_NORM, 1) };
    let fours = |elements: usize| (elements / step) as u32;
    let groups = recorder.grid(NAME, x.shape.rows as u64, 1)?;
    recorder.dispatch(Dispatch {
        entry: entry.on(Bindings { x: from, weight: w, bias: b, out: to }),
        constants: &[entry.workgroup.is(workgroup), RMS.is(rms)],
        params: Params {
            rows: x.shape.rows as u32,
            cols: fours(x.shape.cols),
            x_offset: fours(from.first as usize),
            x_row_stride: fours(x.row_stride),
            weight_offset: fours(w.first as usize),
            bias_offset: fours(b.first as usize),
            out_offset: fours(to.first as usize),
            out_row_stride: fours(out.row_stride),
            epsilon,
        },
        groups,
    });
    Ok(())
}
