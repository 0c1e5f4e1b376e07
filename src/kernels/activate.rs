use super::recorder::{Dispatch, require};
use super::shaders::activate::{self, ACTIVATE, ACTIVATE_GATED, FUNCTION, Params};
use super::{Recorder, Result, View};

/// The nonlinearity of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Activation {
    /// `x Phi(x)`, with the error function.
    Gelu = activate::GELU,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh = activate::GELU_TANH,
    /// `x sigmoid(1.702 x)`, of OpenAI's CLIP.
    QuickGelu = activate::QUICK_GELU,
    /// `x sigmoid(x)`, also called swish.
    Silu = activate::SILU,
    /// `max(x, 0)`.
    Relu = activate::RELU,
    /// `tanh x`, of BERT's pooler.
    Tanh = activate::TANH,
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
    let to = recorder.window_mut(NAME, &x.flat())?;
    let from = up.map(|up| recorder.window(NAME, &up.flat())).transpose()?;
    let groups = recorder.grid(NAME, x.shape.len() as u64, ACTIVATE.workgroup)?;
    recorder.dispatch(Dispatch {
        entry: match from {
            Some(up) => ACTIVATE_GATED.on(activate::ActivateGated { up, x: to }),
            None => ACTIVATE.on(activate::Activate { x: to }),
        },
        constants: &[FUNCTION.is(activation as u32)],
        params: Params {
            count: x.shape.len() as u32,
            x_offset: to.first,
            up_offset: from.map_or(0, |w| w.first),
        },
        groups,
    });
    Ok(())
}
