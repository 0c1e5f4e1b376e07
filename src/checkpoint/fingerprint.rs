//! Which weights a file belongs to: SHA-256 over names, types, shapes and bytes.

use super::{Checkpoint, Error};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Bytes hashed at a time.
const CHUNK: u64 = 8 << 20;

/// The fingerprint of some tensors of a model, as lower-case hexadecimal.
///
/// For every tensor, sorted by name: the name, a zero byte, the type as safetensors spells it (`F16`), a zero byte, the
/// shape (`[192,64]`), a zero byte, and the values as they are stored.
pub fn fingerprint<'a>(
    model: &Checkpoint,
    tensors: impl IntoIterator<Item = &'a str>,
) -> Result<String, Error> {
    let mut names: Vec<&str> = tensors.into_iter().collect();
    names.sort_unstable();
    names.dedup();
    let mut hash = Sha256::new();
    for name in names {
        let Some(meta) = model.get(name) else {
            return Err(Error::NoTensor { path: model.path().to_path_buf(), tensor: name.to_owned() });
        };
        let sizes: Vec<String> = meta.shape.iter().map(usize::to_string).collect();
        hash.update(format!("{name}\0{}\0[{}]\0", meta.dtype, sizes.join(",")));
        let mut at = 0;
        while at < meta.bytes {
            let end = meta.bytes.min(at + CHUNK);
            hash.update(model.read_bytes(name, at..end)?);
            at = end;
        }
    }
    Ok(hexadecimal(&hash.finalize()))
}

/// Bytes as lower-case hexadecimal.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
    }
    text
}
