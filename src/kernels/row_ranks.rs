use super::recorder::{Dispatch, require};
use super::shaders::row_ranks::{Bindings, Params, ROW_RANKS};
use super::{Recorder, Result, View};

/// The rank of every number in its row by magnitude, 0 for the smallest; of equal ones the first in the row has the highest.
/// All views are packed; `order` is scratch of twice as many elements as `x`.
///
/// # Errors
/// If the shapes do not fit, or a view has gaps or does not fit its buffer or the device's bindings.
pub fn row_ranks(recorder: &mut Recorder<'_>, x: &View<'_>, order: &View<'_>, out: &View<'_>) -> Result<()> {
    const NAME: &str = "row_ranks";
    let packed = [x, order, out].iter().all(|view| view.is_packed());
    let fits = out.shape == x.shape && order.shape.len() >= 2 * x.shape.len();
    require(packed && fits, NAME, || format!("x is {}, out is {}", x.shape, out.shape))?;
    if x.shape.is_empty() {
        return Ok(());
    }
    let rows = x.shape.batch * x.shape.rows;
    let from = recorder.window(NAME, &x.flat())?;
    let (scratch, to) = (recorder.window_mut(NAME, &order.flat())?, recorder.window_mut(NAME, &out.flat())?);
    let groups = recorder.grid(NAME, rows as u64, 1)?;
    recorder.dispatch(Dispatch {
        entry: ROW_RANKS.on(Bindings { x: from, order: scratch, out: to }),
        constants: &[],
        params: Params {
            rows: rows as u32,
            cols: x.shape.cols as u32,
            x_offset: from.first,
            order_offset: scratch.first,
            out_offset: to.first,
        },
        groups,
    });
    Ok(())
}
