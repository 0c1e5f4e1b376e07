use super::recorder::{Dispatch, require};
use super::shaders::unit_scale::{Bindings, Params, UNIT_SCALE};
use super::{Recorder, Result, View};

/// `x = 2^k`, the power of two with `1 <= x 2^k < 2`, element by element and in place, for `x` that is not negative and has no
/// gaps. `k` stays between -126 and 126; 0 gets the largest scale.
///
/// # Errors
/// If `x` has gaps, or does not fit its buffer or the device's bindings.
pub fn unit_scale(recorder: &mut Recorder<'_>, x: &View<'_>) -> Result<()> {
    const NAME: &str = "unit_scale";
    require(x.is_packed(), NAME, || "x has gaps".into())?;
    if x.shape.is_empty() {
        return Ok(());
    }
    let window = recorder.window_mut(NAME, x)?;
    let groups = recorder.grid(NAME, x.shape.len() as u64, UNIT_SCALE.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: UNIT_SCALE.on(Bindings { x: window }),
        constants: &[],
        params: Params { count: x.shape.len() as u32, offset: window.first },
        groups,
    });
    Ok(())
}
