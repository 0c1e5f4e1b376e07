//! The model that an adapter says it was trained on, held against the one it is used on.

use super::bad;
use crate::checkpoint::{Checkpoint, Error, hub_repository};
use std::path::Path;

/// A model's path or its name in the Hugging Face hub, as an adapter has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named(pub Option<String>);

/// Bytes at the start of each tensor that are compared.
const COMPARED: u64 = 1 << 16;

impl Named {
    /// Refuses a base that is known to be another model. What cannot be told, because that model is not here, is a note.
    pub fn check(&self, adapter: &Path, base: &Checkpoint) -> Result<Option<String>, Error> {
        let Some(name) = self.0.as_deref().filter(|name| !name.is_empty()) else { return Ok(None) };
        let is_base = match Checkpoint::open(Path::new(name)) {
            Ok(other) => Some(begins_alike(&other, base)?),
            Err(_) => {
                let absolute = std::path::absolute(base.path()).unwrap_or_else(|_| base.path().to_path_buf());
                match hub_repository(&absolute) {
                    Some((_, repository)) if repository == name => Some(true),
                    _ if last(name) == absolute.file_name().and_then(|n| n.to_str()) => Some(true),
                    _ => None,
                }
            }
        };
        match is_base {
            Some(true) => Ok(None),
            Some(false) => Err(bad(
                adapter,
                format!(
                    "it was trained on {name}, whose weights are not those of {}; write `{name}+{}` to use it with its own model, \
                     or insist on this base with --allow-mismatch base_model_name_or_path",
                    base.path().display(),
                    adapter.display()
                ),
            )),
            None => Ok(Some(format!(
                "the adapter {} says that it was trained on {name}; that this is {} could not be verified",
                adapter.display(),
                base.path().display()
            ))),
        }
    }
}

fn last(name: &str) -> Option<&str> {
    name.rsplit(['/', '\\']).find(|part| !part.is_empty())
}

/// Whether two models have the same tensors, which begin with the same bytes.
fn begins_alike(a: &Checkpoint, b: &Checkpoint) -> Result<bool, Error> {
    if a.names().count() != b.names().count() {
        return Ok(false);
    }
    for name in a.names() {
        let (Some(of_a), Some(of_b)) = (a.get(name), b.get(name)) else { return Ok(false) };
        let start = 0..of_a.bytes.min(COMPARED);
        let alike = (of_a.dtype, &of_a.shape) == (of_b.dtype, &of_b.shape);
        if !alike || a.read_bytes(name, start.clone())? != b.read_bytes(name, start)? {
            return Ok(false);
        }
    }
    Ok(true)
}
