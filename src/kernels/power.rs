use super::recorder::{Dispatch, require};
use super::shaders::power::{Bindings, POWER, Params};
use super::{Recorder, Result, View};

/// `x = x^exponent`, element by element, in place; `x` must not be negative and has no gaps. A zero stays zero, whatever
/// the exponent.
///
/// # Errors
/// If `x` has gaps, or does not fit its buffer or the device's bindings.
pub fn power(recorder: &mut Recorder<'_>, x: &View<'_>, exponent: f32) -> Result<()> {
    const NAME: &str = "power";
    require(x.is_packed(), NAME, || "x has gaps".into())?;
    if x.shape.is_empty() {
        return Ok(());
    }
    let window = recorder.window_mut(NAME, x)?;
    let groups = recorder.grid(NAME, x.shape.len() as u64, POWER.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: POWER.on(Bindings { x: window }),
        constants: &[],
        params: Params { count: x.shape.len() as u32, offset: window.first, exponent },
        groups,
    });
    Ok(())
}
