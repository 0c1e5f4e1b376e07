use super::recorder::{Dispatch, Window, require};
use super::shaders::softmax::{Bindings, CAPPED, CAUSAL, Params, SOFTMAX};
use super::shaders::{softmax_positions, softmax_vec4};
use super::{Recorder, Result, View};
use crate::matrix::Shape;

/// Which keys a query sees; unless said otherwise, all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Mask {
    /// Position of the query in row 0.
    pub query: usize,
    /// Position of the key in column 0.
    pub key: usize,
    /// Whether keys after the query's own are hidden.
    pub causal: bool,
    /// The most keys seen in one direction, the query's own included.
    pub window: Option<usize>,
}

/// Attention weights from scores, in place and row by row: `exp(s - max) / sum` over the keys seen, 0 at the others. Before
/// that a score `s` becomes `cap tanh(s / cap)`, where there is a cap, and gets column `m - 1 + j - i` of `positions` added,
/// where there are any: `batch x 1 x (2 m - 1)`, for a query at position `i` and a key at `j`, both below `m`.
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn softmax(
    recorder: &mut Recorder<'_>,
    scores: &View<'_>,
    mask: Mask,
    cap: Option<f32>,
    positions: Option<&View<'_>>,
) -> Result<()> {
    const NAME: &str = "softmax";
    if scores.shape.is_empty() {
        return Ok(());
    }
    let Shape { batch, rows, cols } = scores.shape;
    let Mask { query, key, causal, window } = mask;
    let fits = positions.is_none_or(|p| {
        let reach = p.shape.cols / 2 + 1;
        p.shape == Shape::new(batch, 1, 2 * reach - 1) && query + rows <= reach && key + cols <= reach
    });
    require(fits, NAME, || {
        let positions = positions.map_or(Shape::matrix(0, 0), |p| p.shape);
        format!("scores are {}, positions are {positions}", scores.shape)
    })?;
    let workgroup = if cols > 1024 { 256 } else { 64 };
    let at = recorder.window_mut(NAME, scores)?;
    let of_positions = positions.map(|p| recorder.window(NAME, p)).transpose()?;
    let (entry, step) = match of_positions {
        Some(positions) => {
            (softmax_positions::SOFTMAX.on(softmax_positions::Bindings { scores: at, positions }), 1)
        }
        None if scores.is_in_fours() => (softmax_vec4::SOFTMAX.on(Bindings { scores: at }), 4),
        None => (SOFTMAX.on(Bindings { scores: at }), 1),
    };
    let [offset, row_stride, batch_stride] = at.places(scores, step);
    let count = batch * rows;
    let groups = recorder.grid(NAME, count as u64, 1)?;
    // of the first row's query and the first column's key
    let first = |(window, p): (Window<'_>, &View<'_>)| window.first + (p.shape.cols / 2 + key - query) as u32;
    recorder.dispatch(Dispatch {
        entry,
        constants: &[SOFTMAX.workgroup.is(workgroup), CAUSAL.is(causal), CAPPED.is(cap.is_some())],
        params: Params {
            rows: rows as u32,
            cols: cols as u32,
            groups: count as u32,
            offset,
            row_stride,
            batch_stride,
            query: query as u32,
            key: key as u32,
            window: window.unwrap_or(0) as u32,
            cap: cap.unwrap_or(0.0),
            positions_offset: of_positions.zip(positions).map_or(0, first),
            positions_stride: positions.map_or(0, |p| p.batch_stride as u32),
        },
        groups,
    });
    Ok(())
}
