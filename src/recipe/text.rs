//! The text of a recipe, as editors write it.

use super::Error;
use crate::files;
use crate::host::PathExt;
use std::path::Path;

/// Bytes of a recipe; the longest written by hand have a thousandth of it.
const LIMIT: u64 = 16 << 20;

/// Reads a recipe: UTF-8, or what Windows calls Unicode (UTF-16 with its mark). A pipe is read to its end.
pub(super) fn read(path: &Path) -> Result<String, Error> {
    let cannot = |reason: String| Error::new(path, None, "", format!("the recipe cannot be read: {reason}"));
    if path.leads_to_folder() {
        return Err(cannot("it is a folder; give the YAML file".to_owned()));
    }
    let bytes = files::read_stream(path, LIMIT).map_err(|e| cannot(e.to_string()))?;
    let text = match &bytes[..] {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        all => String::from_utf8(all.to_vec()).ok(),
    };
    text.ok_or_else(|| cannot("it is not UTF-8 text; save it as UTF-8".to_owned()))
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Option<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let units: Vec<u16> = pairs.iter().map(|pair| unit(*pair)).collect();
    if rest.is_empty() { String::from_utf16(&units).ok() } else { None }
}
