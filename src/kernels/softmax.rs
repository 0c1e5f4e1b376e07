use super::library::shaders::params::Softmax as Params;
use super::library::shaders::{SOFTMAX, SOFTMAX_VEC4};
use super::recorder::Dispatch;
use super::{Recorder, Result, View};

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Full,
    /// Its own and those before it.
    Causal {
        /// Position of the query in row 0.
        query: usize,
        /// Position of the key in column 0.
        key: usize,
        /// The most keys seen, its own included.
        window: Option<usize>,
    },
}

/// Attention weights from scores, in place and row by row: `exp(s - max) / sum` over the keys seen, 0 at the others.
///
/// # Errors
/// If the view does not fit its buffer or the device's bindings.
pub fn softmax(recorder: &mut Recorder<'_>, scores: &View<'_>, mask: Mask) -> Result<()> {
    const NAME: &str = "softmax";
    if scores.shape.is_empty() {
        return Ok(());
    }
    let (query, key, window) = match mask {
        Mask::Full => (0, 0, 0),
        Mask::Causal { query, key, window } => (query, key, window.unwrap_or(0)),
    };
    let workgroup = if scores.shape.cols > 1024 { 256 } else { 64 };
    let at = recorder.window(NAME, scores)?;
    let (shader, step) = if scores.is_in_fours() { (&SOFTMAX_VEC4, 4) } else { (&SOFTMAX, 1) };
    let [offset, row_stride, batch_stride] = at.places(scores, step);
    let count = scores.shape.batch * scores.shape.rows;
    let groups = recorder.grid(NAME, count as u64, 1)?;
    recorder.dispatch(Dispatch {
        shader,
        entry: NAME,
        constants: &[
            ("WORKGROUP", f64::from(workgroup)),
            ("CAUSAL", f64::from(u8::from(mask != Mask::Full))),
        ],
        params: Params {
            rows: scores.shape.rows as u32,
            cols: scores.shape.cols as u32,
            groups: count as u32,
            offset,
            row_stride,
            batch_stride,
            query: query as u32,
            key: key as u32,
            window: window as u32,
        },
        windows: &[(1, &at)],
        groups,
    });
    Ok(())
}
