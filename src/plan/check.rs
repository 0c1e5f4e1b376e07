//! Whether the models fit each other.

use super::{Error, Expert, Family, Role};
use crate::checkpoint::{Checkpoint, Kind, TensorMeta, kind};
use crate::recipe::Recipe;

/// Every tensor of the base must be in every expert, with its shape; the other way round, a task vector must have no
/// tensor that the base lacks. Returns warnings.
pub(super) fn tensors_fit(
    family: &Family,
    role: impl Fn(&str, &TensorMeta) -> Role,
) -> Result<Vec<String>, Error> {
    let base = &family.base;
    for name in base.names() {
        let Some(meta) = base.get(name) else { continue };
        if kind(meta.dtype) == Kind::Unsupported {
            return Err(unsupported(base, name, meta));
        }
        if role(name, meta) == Role::Base {
            continue; // the experts' integers are not read
        }
        for expert in &family.experts {
            tensor_fits(base, expert, name, meta)?;
        }
    }
    let mut warnings = Vec::new();
    for expert in &family.experts {
        warnings.extend(no_others(base, expert)?);
    }
    Ok(warnings)
}

fn tensor_fits(base: &Checkpoint, expert: &Expert, name: &str, meta: &TensorMeta) -> Result<(), Error> {
    let Some(found) = expert.weights.get(name) else {
        if expert.is_delta {
            return Ok(()); // a task vector's missing tensors are zero
        }
        return Err(mismatch(base, expert, format!("it has no tensor `{name}`, which the base has")));
    };
    if found.shape != meta.shape {
        let reason =
            format!("tensor `{name}` has shape {:?} there and {:?} in the base", found.shape, meta.shape);
        return Err(mismatch(base, expert, reason));
    }
    match kind(found.dtype) {
        Kind::Float(_) => Ok(()),
        Kind::Unsupported => Err(unsupported(&expert.weights, name, found)),
        Kind::Integer => {
            let reason =
                format!("tensor `{name}` has type {} there and {} in the base", found.dtype, meta.dtype);
            Err(mismatch(base, expert, reason))
        }
    }
}

/// Tensors that the base lacks: an error in a task vector, a warning in a checkpoint (a head of its own, mostly).
fn no_others(base: &Checkpoint, expert: &Expert) -> Result<Option<String>, Error> {
    let others: Vec<&str> = expert.weights.names().filter(|name| base.get(name).is_none()).collect();
    match others[..] {
        [] => Ok(None),
        [first, ..] if expert.is_delta => {
            let reason = format!("its task vector has the tensor `{first}`, which the base lacks");
            Err(mismatch(base, expert, reason))
        }
        [first, ..] => Ok(Some(format!(
            "expert `{}` has {} tensors that the base lacks, such as `{first}`; they are left out",
            expert.name,
            others.len()
        ))),
    }
}

fn mismatch(base: &Checkpoint, expert: &Expert, reason: String) -> Error {
    Error::Mismatch {
        expert: expert.name.clone(),
        path: expert.weights.path().to_path_buf(),
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
        let wild = wildmatch::WildMatch::new(pattern);
        base.names().any(|n| wild.matches(n) && base.get(n).is_some_and(|m| m.matrix().is_some()))
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
