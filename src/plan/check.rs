//! Whether the models fit each other.

use super::names::is_recomputed;
use super::roles::any_matches;
use super::{Error, Expert, Family, Role};
use crate::checkpoint::{Checkpoint, Kind, TensorMeta, kind};
use crate::recipe::Recipe;

/// Every tensor that is merged must be of a type that can be, and of one shape in all models.
pub(super) fn tensors_fit(family: &Family, role: impl Fn(&str, &TensorMeta) -> Role) -> Result<(), Error> {
    for name in family.base.names() {
        let Some(meta) = family.base.get(name) else { continue };
        let role = role(name, meta);
        if role != Role::Base && kind(meta.dtype) == Kind::Unsupported {
            return Err(unsupported(&family.base, name, meta));
        }
        for expert in &family.experts {
            match expert.values_of(name).and_then(|file| file.get(name)) {
                Some(found) if role == Role::Base => not_lost(&family.base, expert, name, (meta, found))?,
                Some(found) => tensor_fits(&family.base, expert, name, (meta, found))?,
                None => {} // its matching says why
            }
        }
    }
    Ok(())
}

/// Where the base's integers are kept, floats of an expert would be lost: it is stored another way.
fn not_lost(
    base: &Checkpoint,
    expert: &Expert,
    name: &str,
    (meta, found): (&TensorMeta, &TensorMeta),
) -> Result<(), Error> {
    let is_float = |meta: &TensorMeta| kind(meta.dtype) != Kind::Integer;
    if is_float(meta) == is_float(found) || (is_float(found) && is_recomputed(name)) {
        return Ok(());
    }
    Err(mismatch(base, expert, other_type(name, meta, found)))
}

fn other_type(name: &str, meta: &TensorMeta, found: &TensorMeta) -> String {
    format!("tensor `{name}` has type {} there and {} in the base", found.dtype, meta.dtype)
}

fn tensor_fits(
    base: &Checkpoint,
    expert: &Expert,
    name: &str,
    (meta, found): (&TensorMeta, &TensorMeta),
) -> Result<(), Error> {
    if found.shape != meta.shape {
        let reason =
            format!("tensor `{name}` has shape {:?} there and {:?} in the base", found.shape, meta.shape);
        return Err(mismatch(base, expert, reason));
    }
    match kind(found.dtype) {
        Kind::Float(_) => Ok(()),
        Kind::Unsupported => Err(unsupported(&expert.weights, name, found)),
        Kind::Integer => Err(mismatch(base, expert, other_type(name, meta, found))),
    }
}

pub(super) fn mismatch(base: &Checkpoint, expert: &Expert, reason: String) -> Error {
    Error::Mismatch {
        expert: expert.name.clone(),
        path: expert.own.path().to_path_buf(),
        base: base.path().to_path_buf(),
        reason,
    }
}

fn unsupported(model: &Checkpoint, name: &str, meta: &TensorMeta) -> Error {
    let reason = format!(
        "tensor `{name}` has type {}, and only float32, float16 and bfloat16 can be merged; convert it first",
        meta.dtype
    );
    Error::Unsupported { path: model.path().to_path_buf(), reason }
}

/// Says which calibration files could not be tied to their experts.
pub(super) fn unverified_calibrations(family: &Family) -> Option<String> {
    let without = |e: &&Expert| e.calibration.as_ref().is_some_and(|c| !c.has_fingerprint());
    let names: Vec<&str> = family.experts.iter().filter(without).map(|e| e.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        format!(
            "the calibration of {} has no fingerprint: names and shapes fit, but that it was captured from this expert \
             could not be verified",
            names.join(", ")
        )
    })
}

/// Every pattern of a key (`layers`) must match a matrix.
pub(super) fn patterns_match(
    recipe: &Recipe,
    key: &str,
    patterns: &[String],
    base: &Checkpoint,
) -> Result<(), Error> {
    let matches = |pattern: &str| {
        let wild = [wildmatch::WildMatch::new(pattern)];
        base.names().any(|n| any_matches(&wild, n) && base.get(n).is_some_and(|m| m.matrix().is_some()))
    };
    match patterns.iter().position(|p| !matches(p)) {
        None => Ok(()),
        Some(i) => {
            let key = format!("parameters.{key}[{i}]");
            let message = format!(
                "`{}` matches no matrix of the base; patterns match whole tensor names, with * for any characters",
                patterns[i]
            );
            Err(crate::recipe::Error::new(&recipe.path, None, key, message).into())
        }
    }
}
