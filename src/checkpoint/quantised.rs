//! Safetensors checkpoints of 8-bit and 4-bit floats: every weight is seen as the floats that its codes and scales stand for, and the scales are
//! tensors no more.

use super::codes::{Codes, Format, Rows, Scales};
use super::mxfp4::{self, Mxfp4};
use super::{Checkpoint, Stored, TensorMeta};
use std::sync::Arc;

/// What a scale is called, after the name of its weight or of its module: `W = code * scale` in either case.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// Scales of what enters and leaves a layer, which a model in floats has no use for.
const OF_ACTIVATIONS: [&str; 6] =
    ["input_scale", "output_scale", "activation_scale", "input_scale_ub", "k_scale", "v_scale"];

/// The checkpoint with its 8-bit floats, and 4-bit floats of experts, as floats. Codes whose scales fit no known arrangement stay as
/// they are.
pub(super) fn as_floats(mut model: Checkpoint) -> Checkpoint {
    let coded: Vec<Coded> = model.names().filter_map(|name| coded(&model, name)).collect();
    if coded.is_empty() {
        return model;
    }
    let small = coded.iter().filter(|coded| matches!(coded.codes, Codes::Mxfp4(_))).count();
    let kinds = [(coded.len() - small, "8-bit floats"), (small, "4-bit floats (mxfp4)")];
    let counts: Vec<String> =
        kinds.iter().filter(|(n, _)| *n > 0).map(|(n, kind)| format!("{n} weights of {kind}")).collect();
    let mut note = format!("{}: {} are read as floats", model.path().display(), counts.join(" and "));
    let mut used = Vec::new();
    for Coded { name, seen_as, shape, codes, scales } in coded {
        model.decode(&name, &seen_as, shape, codes);
        used.extend(scales);
    }
    let left_out: Vec<String> = model
        .names()
        .filter(|name| OF_ACTIVATIONS.contains(&name.rsplit('.').next().unwrap_or(name)))
        .map(str::to_owned)
        .collect();
    model.forget(used.iter().chain(&left_out));
    if !left_out.is_empty() {
        note +=
            &format!("; {} scales of activations (such as `{}`) are left out", left_out.len(), left_out[0]);
    }
    model.note(note);
    model
}

/// A tensor of codes.
struct Coded {
    name: String,
    /// What its values are called.
    seen_as: String,
    shape: Vec<usize>,
    codes: Codes,
    /// The tensor with its scales.
    scales: Option<String>,
}

fn coded(model: &Checkpoint, name: &str) -> Option<Coded> {
    eight_bits(model, name).or_else(|| four_bits(model, name))
}

/// Experts' weights in mxfp4.
fn four_bits(model: &Checkpoint, name: &str) -> Option<Coded> {
    let seen_as = name.strip_suffix(mxfp4::BLOCKS)?;
    let scales = format!("{seen_as}{}", mxfp4::SCALES);
    let (meta, of_scales) = (model.get(name)?, model.get(&scales)?);
    let extent = model.bytes(&scales, 0..of_scales.bytes).ok()?;
    let (codes, shape) = Mxfp4::of(meta, of_scales, extent)?;
    let seen_as = Some(seen_as.to_owned()).filter(|name| model.get(name).is_none())?;
    Some(Coded { name: name.to_owned(), seen_as, shape, codes: Codes::Mxfp4(codes), scales: Some(scales) })
}

fn format(meta: &TensorMeta) -> Option<Format> {
    match meta.dtype {
        Stored::F8_E4M3 => Some(Format::E4M3),
        Stored::F8_E5M2 => Some(Format::E5M2),
        _ => None,
    }
}

/// A weight of 8-bit floats.
fn eight_bits(model: &Checkpoint, name: &str) -> Option<Coded> {
    let meta = model.get(name)?;
    let format = format(meta)?;
    let cols = meta.shape.last().copied().unwrap_or(1).max(1);
    let rows = meta.elements() / cols;
    let found = SCALES.iter().map(|end| format!("{name}{end}")).find(|scale| model.get(scale).is_some());
    let scales = match &found {
        None => None,
        Some(scale) => {
            let meta = model.get(scale)?;
            let (dtype, shape) = (meta.float()?, meta.shape.clone());
            let extent = model.bytes(scale, 0..meta.bytes).ok()?;
            Some(Arc::new(Scales::of(extent, dtype, &shape, [rows, cols])?))
        }
    };
    let codes = Codes::Rows(Rows { format, cols, scales, head_rows: None, plus: 0.0 });
    let (name, shape) = (name.to_owned(), meta.shape.clone());
    Some(Coded { seen_as: name.clone(), name, shape, codes, scales: found })
}
