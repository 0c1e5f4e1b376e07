use super::recorder::{Dispatch, require};
use super::shaders::add_exactly::{ADD_EXACTLY, Bindings, Params};
use super::{Recorder, Result, View};

/// `high + low += x`, where `high` is the nearest f32 of the sum and `low` what it misses: a sum to about twice the
/// precision of f32. Views are packed.
///
/// # Errors
/// If the shapes differ, a view has gaps, or it does not fit its buffer or the device's bindings.
pub fn add_exactly(recorder: &mut Recorder<'_>, x: &View<'_>, high: &View<'_>, low: &View<'_>) -> Result<()> {
    const NAME: &str = "add_exactly";
    let packed = [x, high, low].iter().all(|v| v.is_packed() && v.shape == x.shape);
    require(packed, NAME, || format!("x is {}, high is {}, low is {}", x.shape, high.shape, low.shape))?;
    if x.shape.is_empty() {
        return Ok(());
    }
    let from = recorder.window(NAME, &x.flat())?;
    let h = recorder.window_mut(NAME, &high.flat())?;
    let l = recorder.window_mut(NAME, &low.flat())?;
    let groups = recorder.grid(NAME, x.shape.len() as u64, ADD_EXACTLY.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: ADD_EXACTLY.on(Bindings { x: from, high: h, low: l }),
        constants: &[],
        params: Params {
            count: x.shape.len() as u32,
            x_offset: from.first,
            high_offset: h.first,
            low_offset: l.first,
        },
        groups,
    });
    Ok(())
}
