//! Safetensors checkpoints of 8-bit floats: every weight is seen as the floats that its codes and scales stand for, and the scales are
//! tensors no more.

use super::codes::{Codes, Format, Scales};
use super::{Checkpoint, Stored, TensorMeta};
use std::sync::Arc;

/// What a scale is called, after the name of its weight or of its module: `W = code * scale` in either case.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// Scales of what enters and leaves a layer, which a model in floats has no use for.
const OF_ACTIVATIONS: [&str; 6] =
    ["input_scale", "output_scale", "activation_scale", "input_scale_ub", "k_scale", "v_scale"];

/// The checkpoint with its 8-bit floats as floats. One whose scales fit no known arrangement stays as it is.
pub(super) fn as_floats(mut model: Checkpoint) -> Checkpoint {
    let coded: Vec<String> = model
        .names()
        .filter(|name| model.get(name).is_some_and(|m| format(m).is_some()))
        .map(str::to_owned)
        .collect();
    if coded.is_empty() {
        return model;
    }
    let mut used = Vec::new();
    for name in &coded {
        let Some((codes, scale)) = codes_of(&model, name) else { continue };
        model.decode(name, codes);
        used.extend(scale);
    }
    let left_out: Vec<String> = model
        .names()
        .filter(|name| OF_ACTIVATIONS.contains(&name.rsplit('.').next().unwrap_or(name)))
        .map(str::to_owned)
        .collect();
    model.forget(used.iter().chain(&left_out));
    let mut note =
        format!("{}: {} weights of 8-bit floats are read as floats", model.path().display(), coded.len());
    if !left_out.is_empty() {
        note +=
            &format!("; {} scales of activations (such as `{}`) are left out", left_out.len(), left_out[0]);
    }
    model.note(note);
    model
}

fn format(meta: &TensorMeta) -> Option<Format> {
    match meta.dtype {
        Stored::F8_E4M3 => Some(Format::E4M3),
        Stored::F8_E5M2 => Some(Format::E5M2),
        _ => None,
    }
}

/// How a weight is coded, and the tensor with its scales.
fn codes_of(model: &Checkpoint, name: &str) -> Option<(Codes, Option<String>)> {
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
    Some((Codes { format, cols, scales, head_rows: None, plus: 0.0 }, found))
}
