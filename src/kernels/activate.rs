use super::library::shaders::ACTIVATE;
use super::library::shaders::params::Activate as Params;
use super::recorder::{Dispatch, ELEMENTS, require};
use super::{Recorder, Result, View};

/// The nonlinearity of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x Phi(x)`, with the error function.
    Gelu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x sigmoid(1.702 x)`, of OpenAI's CLIP.
    QuickGelu,
    /// `x sigmoid(x)`, also called swish.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `tanh x`, of BERT's pooler.
    Tanh,
}

/// `x = f(x)`, or `x = f(x) * up` element by element. Views are packed.
///
/// # Errors
/// If the shapes differ, a view has gaps, or it does not fit its buffer or the device's bindings.
pub fn activate(
    recorder: &mut Recorder<'_>,
    x: &View<'_>,
    activation: Activation,
    up: Option<&View<'_>>,
) -> Result<()> {
    const NAME: &str = "activate";
    let fits = x.is_packed() && up.is_none_or(|up| up.is_packed() && up.shape == x.shape);
    require(fits, NAME, || format!("x is {}, up is {:?}", x.shape, up.map(|u| u.shape)))?;
    if x.shape.is_empty() {
        return Ok(());
    }
    let to = recorder.window(NAME, &x.flat())?;
    let from = up.map(|up| recorder.window(NAME, &up.flat())).transpose()?;
    let groups = recorder.grid(NAME, x.shape.len() as u64, ELEMENTS)?;
    let windows: &[_] = match &from {
        Some(from) => &[(1, from), (2, &to)],
        None => &[(2, &to)],
    };
    recorder.dispatch(Dispatch {
        shader: &ACTIVATE,
        entry: if up.is_none() { "activate" } else { "activate_gated" },
        constants: &[("WORKGROUP", f64::from(ELEMENTS)), ("FUNCTION", f64::from(activation as u32))],
        params: Params {
            count: x.shape.len() as u32,
            x_offset: to.first,
            up_offset: from.as_ref().map_or(0, |w| w.first),
        },
        windows,
        groups,
    });
    Ok(())
}
