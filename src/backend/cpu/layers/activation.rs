//! `add_bias`, `activate` and `activate_gated`.

use super::super::parallel::for_each_piece;
use super::exp::exp;
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
    for_each_piece(&mut x.values, 1, |_, piece| apply(activation, piece));
}

pub fn activate_gated(gate: &mut CpuTensor, up: &CpuTensor, activation: Activation) {
    for_each_piece(&mut gate.values, 1, |first, piece| {
        apply(activation, piece);
        piece.iter_mut().zip(&up.values[first..]).for_each(|(g, u)| *g *= u);
    });
}

/// One loop a function, so that each is inlined and vectorised.
fn apply(activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Gelu => x.iter_mut().for_each(|v| *v = gelu(*v)),
        Activation::GeluTanh => x.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
        Activation::QuickGelu => x.iter_mut().for_each(|v| *v *= sigmoid(1.702 * *v)),
        Activation::Silu => x.iter_mut().for_each(|v| *v *= sigmoid(*v)),
        Activation::Relu => x.iter_mut().for_each(|v| *v = v.max(0.0)),
        Activation::Tanh => x.iter_mut().for_each(|v| *v = tanh(*v)),
    }
}

/// `x Phi(x)`, from the tail of the error function: `1 + erf` would cancel on the left.
#[inline]
fn gelu(x: f32) -> f32 {
    let tail = erfc(x.abs().min(13.0) * FRAC_1_SQRT_2);
    0.5 * x * if x < 0.0 { tail } else { 2.0 - tail }
}

/// `erfc` for `x >= 0` to a relative 1.2e-7 (Press et al., Numerical Recipes, 2nd edition, section 6.2).
#[inline]
fn erfc(x: f32) -> f32 {
    const C: [f32; 10] = [
        0.170_872_77,
        -0.822_152_2,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    let t = (1.0 + 0.5 * x).recip();
    let p = C.iter().fold(0.0, |p, c| p * t + c);
    t * exp(p - x * x)
}

#[inline]
fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh((2.0 / PI).sqrt() * (x + 0.044_715 * x * x * x)))
}

/// Without overflow, however large `x` is.
#[inline]
pub fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    ((1.0 - e) / (1.0 + e)).copysign(x)
}

#[inline]
fn sigmoid(x: f32) -> f32 {
    (1.0 + exp(-x)).recip()
}
