//! `add_bias`, `activate` and `activate_gated`.

use super::super::parallel::for_each_piece;
use super::{Activation, CpuTensor};
use std::f32::consts::{FRAC_1_SQRT_2, PI};

pub fn add_bias(x: &mut CpuTensor, bias: &CpuTensor) {
    let cols = x.shape.cols.max(1);
    for_each_piece(&mut x.values, cols, |_, rows| {
        for row in rows.chunks_mut(cols) {
            row.iter_mut().zip(&bias.values).for_each(|(v, b)| *v += b);
        }
    });
}

pub fn activate(x: &mut CpuTensor, activation: Activation) {
    let f = function(activation);
    for_each_piece(&mut x.values, 1, |_, piece| piece.iter_mut().for_each(|v| *v = f(*v)));
}

pub fn activate_gated(gate: &mut CpuTensor, up: &CpuTensor, activation: Activation) {
    let f = function(activation);
    for_each_piece(&mut gate.values, 1, |first, piece| {
        piece.iter_mut().zip(&up.values[first..]).for_each(|(g, u)| *g = f(*g) * u);
    });
}

fn function(activation: Activation) -> fn(f32) -> f32 {
    match activation {
        // erfc keeps the digits of the left tail that 1 + erf cancels
        Activation::Gelu => |x| 0.5 * x * libm::erfcf(-x * FRAC_1_SQRT_2),
        Activation::GeluTanh => {
            |x| 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }
        Activation::QuickGelu => |x| x * sigmoid(1.702 * x),
        Activation::Silu => |x| x * sigmoid(x),
        Activation::Relu => |x| x.max(0.0),
        Activation::Tanh => f32::tanh,
    }
}

fn sigmoid(x: f32) -> f32 {
    (1.0 + (-x).exp()).recip()
}
