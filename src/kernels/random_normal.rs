use super::recorder::{Dispatch, require};
use super::shaders::random_normal::{Bindings, Params, RANDOM_NORMAL};
use super::{Recorder, Result, View};

/// Standard normals: element `i` of the packed `dst` is number `first + i` of stream `stream` of `seed`, the same bits on
/// every device. It is a sum of twelve uniform numbers, so no value lies beyond 6.
///
/// # Errors
/// If `dst` has gaps or does not fit its buffer or the device's bindings.
pub fn random_normal(
    recorder: &mut Recorder<'_>,
    seed: u64,
    stream: u32,
    first: u32,
    dst: &View<'_>,
) -> Result<()> {
    const NAME: &str = "random_normal";
    require(dst.is_packed(), NAME, || "dst has gaps".into())?;
    let count = dst.shape.len();
    if count == 0 {
        return Ok(());
    }
    let to = recorder.window_mut(NAME, &dst.flat())?;
    let groups = recorder.grid(NAME, count as u64, RANDOM_NORMAL.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: RANDOM_NORMAL.on(Bindings { dst: to }),
        constants: &[],
        params: Params {
            count: count as u32,
            offset: to.first,
            first,
            stream,
            key_low: seed as u32,
            key_high: (seed >> 32) as u32,
        },
        groups,
    });
    Ok(())
}
