use super::library::shaders::ACROSS;
use super::library::shaders::params::Across as Params;
use super::recorder::{Dispatch, ELEMENTS, require};
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
    let [from, given, to] = [x, factors, out].map(|view| recorder.window(NAME, view));
    let (from, given, to) = (from?, given?, to?);
    let count = out.shape.len();
    let groups = recorder.grid(NAME, count as u64, ELEMENTS)?;
    let (entry, divide, number, least) = match *rule {
        Across::Weigh(_) => ("weigh", 0, 0.0, 0),
        Across::Positive(_) => ("positive", 0, 0.0, 0),
        Across::Elect { divide, .. } => {
            let divide = match divide {
                Divide::Never => 0,
                Divide::UnlessZero => 1,
                Divide::BySome => 2,
            };
            ("elect", divide, 0.0, 0)
        }
        Across::Share { epsilon, .. } => ("share", 0, epsilon, 0),
        Across::Having { epsilon, task, shared } => ("having", 1 + u8::from(shared), epsilon, task),
        Across::Agree { least, .. } => ("agree", 0, 0.0, least),
        Across::Variance => ("variance", 0, 0.0, 0),
        Across::Approach(t) => ("approach", 0, t, 0),
    };
    // a rule without factors has no binding for them
    let windows: Vec<_> = match rule.factors().is_empty() {
        true => vec![(1, &from), (3, &to)],
        false => vec![(1, &from), (2, &given), (3, &to)],
    };
    let constants = [("WORKGROUP", f64::from(ELEMENTS)), ("DIVIDE", f64::from(divide))];
    let divides = matches!(rule, Across::Elect { .. } | Across::Having { .. });
    recorder.dispatch(Dispatch {
        shader: &ACROSS,
        entry,
        constants: if divides { &constants } else { &constants[..1] },
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
        windows: &windows,
        groups,
    });
    Ok(())
}
