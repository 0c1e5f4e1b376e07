use super::recorder::{Dispatch, require};
use super::shaders::row_divergence::{Bindings, Params, ROW_DIVERGENCE};
use super::{Recorder, Result, View};
use crate::matrix::Shape;

/// `KL(softmax(base + delta) || softmax(base))` of every row, 1e-8 added to both: `batch x rows x 1`. All views are packed.
///
/// # Errors
/// If the shapes do not fit, or a view has gaps or does not fit its buffer or the device's bindings.
pub fn row_divergence(
    recorder: &mut Recorder<'_>,
    base: &View<'_>,
    delta: &View<'_>,
    out: &View<'_>,
) -> Result<()> {
    const NAME: &str = "row_divergence";
    let packed = [base, delta, out].iter().all(|view| view.is_packed());
    let fits = base.shape == delta.shape && out.shape == Shape { cols: 1, ..base.shape };
    require(packed && fits, NAME, || format!("base is {}, delta is {}", base.shape, delta.shape))?;
    if out.shape.is_empty() {
        return Ok(());
    }
    let (b, d) = (recorder.window(NAME, &base.flat())?, recorder.window(NAME, &delta.flat())?);
    let to = recorder.window_mut(NAME, &out.flat())?;
    let rows = base.shape.batch * base.shape.rows;
    let groups = recorder.grid(NAME, rows as u64, 1)?;
    recorder.dispatch(Dispatch {
        entry: ROW_DIVERGENCE.on(Bindings { base: b, delta: d, out: to }),
        constants: &[],
        params: Params {
            rows: rows as u32,
            cols: base.shape.cols as u32,
            base_offset: b.first,
            delta_offset: d.first,
            out_offset: to.first,
        },
        groups,
    });
    Ok(())
}
