//! Integer tensors of a safetensors file.

use super::Error;
use crate::checkpoint::{Stored, TensorFile};
use std::ops::Range;

/// The values `range` of an integer tensor; none may be negative or past `u32`.
pub fn read(file: &TensorFile, name: &str, range: Range<usize>) -> Result<Vec<u32>, Error> {
    let meta = file.meta(name)?;
    let bad = |reason: String| Error::bad(file.path(), format!("`{name}` {reason}"));
    let size = match meta.dtype {
        Stored::U8 | Stored::I8 | Stored::BOOL => 1,
        Stored::U16 | Stored::I16 => 2,
        Stored::U32 | Stored::I32 => 4,
        Stored::U64 | Stored::I64 => 8,
        other => return Err(bad(format!("has type {other}; integers are expected"))),
    };
    let signed = matches!(meta.dtype, Stored::I8 | Stored::I16 | Stored::I32 | Stored::I64);
    let bytes = file.read_bytes(name, (range.start * size) as u64..(range.end * size) as u64)?;
    let value = |little_endian: &[u8]| {
        let negative = signed && little_endian.last().is_some_and(|b| b & 0x80 != 0);
        let wide = little_endian.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
        u32::try_from(wide).ok().filter(|_| !negative)
    };
    let values: Option<Vec<u32>> = bytes.chunks_exact(size).map(value).collect();
    values.ok_or_else(|| bad("holds a value that is negative or too large".into()))
}
