use super::library::shaders::POWER;
use super::library::shaders::params::Power as Params;
use super::recorder::{Dispatch, ELEMENTS, require};
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
    let window = recorder.window(NAME, x)?;
    let groups = recorder.grid(NAME, x.shape.len() as u64, ELEMENTS)?;
    recorder.dispatch(Dispatch {
        shader: &POWER,
        entry: NAME,
        constants: &[("WORKGROUP", f64::from(ELEMENTS))],
        params: Params { count: x.shape.len() as u32, offset: window.first, exponent },
        windows: &[(1, &window)],
        groups,
    });
    Ok(())
}
