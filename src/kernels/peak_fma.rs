use super::recorder::{Dispatch, require};
use super::shaders::peak_fma::{Bindings, PEAK_FMA, Params};
use super::{Recorder, Result, View};

/// Multiply-adds of one thread in one round.
const STEPS: u64 = 16 * 8;

/// The floating-point operations of [`peak_fma`], two to a multiply-add.
pub fn peak_fma_flops(rounds: u32, threads: usize) -> f64 {
    (2 * STEPS * u64::from(rounds) * threads as u64) as f64
}

/// As many multiply-adds as the device can do, for the peak that others are compared with: one thread for every element
/// of the packed `out`, `rounds` rounds each.
///
/// # Errors
/// If `out` has gaps or does not fit its buffer or the device's bindings.
pub fn peak_fma(recorder: &mut Recorder<'_>, rounds: u32, out: &View<'_>) -> Result<()> {
    const NAME: &str = "peak_fma";
    require(out.is_packed(), NAME, || "out has gaps".into())?;
    require(out.offset == 0, NAME, || "out does not begin with its buffer".into())?;
    let count = out.shape.len();
    if count == 0 {
        return Ok(());
    }
    let to = recorder.window_mut(NAME, &out.flat())?;
    let groups = recorder.grid(NAME, count as u64, PEAK_FMA.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: PEAK_FMA.on(Bindings { out: to }),
        constants: &[],
        params: Params { count: count as u32, rounds, factor: 0.999, term: 0.001 },
        groups,
    });
    Ok(())
}
