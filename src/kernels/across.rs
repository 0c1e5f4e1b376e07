use super::recorder::{Dispatch, require};
use super::shaders::across::{AGREE, APPROACH, ELECT, HAVING, POSITIVE, SHARE, VARIANCE, WEIGH};
use super::shaders::across::{BY_SOME, DIVIDE, NEVER, SHARED, UNLESS_ZERO};
use super::shaders::across::{Having, Params, Weigh};
use super::{Recorder, Result, View};
use crate::matrix::{Across, Divide, Shape};

/// What the members of the batch `x` make of each element together, by `rule`: `out` is one matrix. `factors` holds the rule's
/// [`Across::factors`].
///
/// # Errors
/// If the shapes do not fit, or a view does not fit its buffer or the device's bindings.
pub fn across(
    recorder: &mut Recorder<'_>,
    x: &View<'_>,
    rule: &Across<'_>,
    factors: &View<'_>,
    out: &View<'_>,
) -> Result<()> {
    const NAME: &str = "across";
    let tasks = x.shape.batch;
    let packed = x.batches(0..tasks.min(1)).is_packed() && out.is_packed() && factors.is_packed();
    let fits = out.shape == Shape { batch: 1, ..x.shape } && tasks > 0;
    require(packed && fits, NAME, || format!("x is {}, out is {}", x.shape, out.shape))?;
    if out.shape.is_empty() {
        return Ok(());
    }
    let (from, given) = (recorder.window(NAME, x)?, recorder.window(NAME, factors)?);
    let to = recorder.window_mut(NAME, out)?;
    let count = out.shape.len();
    let groups = recorder.grid(NAME, count as u64, WEIGH.workgroup)?;
    let (alone, weighed) = (Having { x: from, out: to }, Weigh { x: from, factors: given, out: to });
    let (entry, constant, number, least) = match *rule {
        Across::Weigh(_) => (WEIGH.on(weighed), None, 0.0, 0),
        Across::Positive(_) => (POSITIVE.on(weighed), None, 0.0, 0),
        Across::Elect { divide, .. } => {
            let divide = match divide {
                Divide::Never => NEVER,
                Divide::UnlessZero => UNLESS_ZERO,
                Divide::BySome => BY_SOME,
            };
            (ELECT.on(weighed), Some(DIVIDE.is(divide)), 0.0, 0)
        }
        Across::Share { epsilon, .. } => (SHARE.on(weighed), None, epsilon, 0),
        Across::Having { epsilon, task, shared } => {
            (HAVING.on(alone), Some(SHARED.is(shared)), epsilon, task)
        }
        Across::Agree { least, .. } => (AGREE.on(weighed), None, 0.0, least),
        Across::Variance => (VARIANCE.on(alone), None, 0.0, 0),
        Across::Approach(t) => (APPROACH.on(alone), None, t, 0),
    };
    recorder.dispatch(Dispatch {
        entry,
        constants: constant.as_slice(),
        params: Params {
            count: count as u32,
            tasks: tasks as u32,
            x_offset: from.first,
            x_stride: x.batch_stride as u32,
            factors_offset: given.first,
            out_offset: to.first,
            number,
            least: least as u32,
        },
        groups,
    });
    Ok(())
}
