//! Tensors that cannot be merged as floats and need not be, because they are the same in all models.

use super::{Error, Family};
use crate::backend::Dtype;
use crate::checkpoint::{Checkpoint, Kind, TensorMeta, first_not_finite, kind, widen};
use std::collections::HashSet;

/// Bytes of a buffer that is looked into before the merge; larger tensors are weights.
const LARGEST_BUFFER: u64 = 16 << 20;

/// The tensors of the base that are copied bit for bit whatever their type: float64, or holding an infinity or a number past
/// the output's type, and identical in all models.
pub(super) fn identical(family: &Family, out: Option<Dtype>) -> Result<HashSet<String>, Error> {
    let mut found = HashSet::new();
    for name in family.base.names() {
        let Some(meta) = family.base.get(name) else { continue };
        if cannot_be_merged(&family.base, name, meta, out)? && is_the_same(family, name, meta)? {
            found.insert(name.to_owned());
        }
    }
    Ok(found)
}

fn cannot_be_merged(
    base: &Checkpoint,
    name: &str,
    meta: &TensorMeta,
    out: Option<Dtype>,
) -> Result<bool, Error> {
    match kind(meta.dtype) {
        Kind::Integer => Ok(false),
        Kind::Unsupported => Ok(true),
        Kind::Float(dtype) => {
            let last = name.rsplit('.').next().unwrap_or(name);
            let is_weight = matches!(last, "weight" | "bias") || base.slice(name).is_some();
            if is_weight || meta.bytes > LARGEST_BUFFER {
                return Ok(false);
            }
            let bytes = base.read_bytes(name, 0..meta.bytes)?;
            let past = |v: &f32| out == Some(Dtype::F16) && v.abs() > half::f16::MAX.to_f32();
            Ok(first_not_finite(dtype, &bytes).is_some() || widen(dtype, &bytes).iter().any(past))
        }
    }
}

/// Bytes compared at a time.
const CHUNK: u64 = 8 << 20;

/// Whether every expert that has the tensor has it with the base's type and bytes. A task vector that lacks it leaves it alone.
fn is_the_same(family: &Family, name: &str, meta: &TensorMeta) -> Result<bool, Error> {
    for expert in &family.experts {
        let Some(weights) = expert.values_of(name) else { continue };
        let Some(found) = weights.get(name) else { continue };
        if expert.is_delta
            || expert.has_factors(name)
            || (found.dtype, &found.shape) != (meta.dtype, &meta.shape)
        {
            return Ok(false);
        }
        for start in (0..meta.bytes).step_by(CHUNK as usize) {
            let range = start..meta.bytes.min(start + CHUNK);
            if family.base.read_bytes(name, range.clone())? != weights.read_bytes(name, range)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
