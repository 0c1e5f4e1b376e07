//! One safetensors file: its header, checked and owned, and reads of byte ranges.

use super::scan::first_not_finite;
use super::{Error, TensorMeta, magic};
use indexmap::IndexMap;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of the number that starts a file: the length of its header.
pub(super) const LENGTH_PREFIX: u64 = 8;
/// The format's own limit on a header.
const MAX_HEADER: u64 = 100_000_000;

/// A safetensors file whose header has been read.
///
/// No file stays open or mapped: values are read with positioned reads, so that a model of any size costs only the
/// range being read, and hundreds of shards cost no file handles.
#[derive(Clone, Debug)]
pub struct TensorFile {
    path: PathBuf,
    tensors: IndexMap<String, TensorMeta>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Reads and checks the header: the format's own rules, and that the file is exactly as long as the header says.
    pub fn open(path: &Path) -> Result<TensorFile, Error> {
        let file = open(path)?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        let header = read_header(&file, path, length)?;
        let start = LENGTH_PREFIX + header.len() as u64;
        let (metadata, tensors) = parse_header(&header, start).map_err(|reason| malformed(path, reason))?;
        let end = tensors.last().map_or(start, |(_, last)| last.offset + last.bytes);
        if end != length {
            return Err(malformed(path, wrong_length(end, length)));
        }
        Ok(TensorFile { path: path.to_path_buf(), tensors, metadata })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, in the order in which they lie in the file.
    pub fn tensors(&self) -> &IndexMap<String, TensorMeta> {
        &self.tensors
    }

    /// The `__metadata__` of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// A tensor's entry in the header.
    pub fn meta(&self, name: &str) -> Result<&TensorMeta, Error> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    /// Raw bytes `range` of a tensor, counted from its first byte.
    pub fn read_bytes(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let meta = self.meta(name)?;
        let wanted = range.end.min(meta.bytes).saturating_sub(range.start);
        let mut bytes = vec![0; wanted as usize];
        read_exact_at(&open(&self.path)?, &mut bytes, meta.offset + range.start)
            .map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }

    /// Raw bytes of the values `range` of a floating-point tensor, checked to be finite.
    pub fn read_values(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, Error> {
        let Some(dtype) = self.meta(name)?.float() else {
            let reason = format!("tensor `{name}` does not hold floating-point values that can be merged");
            return Err(malformed(&self.path, reason));
        };
        let size = dtype.size() as u64;
        let bytes = self.read_bytes(name, range.start as u64 * size..range.end as u64 * size)?;
        match first_not_finite(dtype, &bytes) {
            None => Ok(bytes),
            Some((index, value)) => Err(Error::NotFinite {
                path: self.path.clone(),
                tensor: name.to_owned(),
                index: range.start + index,
                value,
            }),
        }
    }
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(Error::io("open", path))
}

fn read_header(file: &File, path: &Path, length: u64) -> Result<Vec<u8>, Error> {
    let mut prefix = [0; LENGTH_PREFIX as usize];
    if length < LENGTH_PREFIX {
        return Err(malformed(path, format!("it has only {length} bytes; download or export it again")));
    }
    read_exact_at(file, &mut prefix, 0).map_err(Error::io("read", path))?;
    let bytes = u64::from_le_bytes(prefix);
    if bytes > MAX_HEADER || bytes > length - LENGTH_PREFIX {
        let mut start = vec![0; length.min(magic::BYTES as u64) as usize];
        read_exact_at(file, &mut start, 0).map_err(Error::io("read", path))?;
        if let Some(what) = magic::kind(&start) {
            return Err(malformed(path, what.to_owned()));
        }
        return Err(malformed(
            path,
            format!(
                "its header should take {bytes} bytes, but the file has {length} in all; it is truncated or of \
                 another format (only safetensors files are read)"
            ),
        ));
    }
    let mut header = vec![0; bytes as usize];
    read_exact_at(file, &mut header, LENGTH_PREFIX).map_err(Error::io("read", path))?;
    Ok(header)
}

fn wrong_length(expected: u64, length: u64) -> String {
    let state = if length < expected { "it is truncated" } else { "something was appended to it" };
    format!(
        "its header describes {expected} bytes, but the file has {length}: {state}; download or export it again"
    )
}

/// The metadata, and the tensors in the order of their data, of a header whose data start at byte `start`.
fn parse_header(header: &[u8], start: u64) -> Result<Header, String> {
    let mut entries: IndexMap<String, serde_json::Value> = serde_json::from_slice(header)
        .map_err(|e| format!("its header is not a JSON object of tensors ({e})"))?;
    let metadata = match entries.shift_remove("__metadata__") {
        None => BTreeMap::new(),
        Some(value) => BTreeMap::deserialize(value)
            .map_err(|e| format!("`__metadata__` in its header should map strings to strings ({e})"))?,
    };
    let mut infos = entries
        .into_iter()
        .map(|(name, value)| match TensorInfo::deserialize(value) {
            Ok(info) => Ok((name, info)),
            Err(e) => Err(format!("the header's entry of tensor `{name}` cannot be read ({e})")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    infos.sort_by_key(|(_, info)| info.data_offsets);

    let mut tensors = IndexMap::new();
    let mut end = 0;
    for (name, info) in infos {
        let meta = locate(&name, info, start, end)?;
        end = meta.offset + meta.bytes - start;
        tensors.insert(name, meta);
    }
    Ok((metadata, tensors))
}

type Header = (BTreeMap<String, String>, IndexMap<String, TensorMeta>);

/// One entry, whose data must begin where the previous tensor's end and be as long as its shape says.
fn locate(name: &str, info: TensorInfo, start: u64, previous_end: u64) -> Result<TensorMeta, String> {
    let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
    if from != previous_end || to < from {
        return Err(format!(
            "the data of tensor `{name}` should begin at byte {previous_end} of the data but is given as {from}..{to}: \
             tensors overlap or leave a gap; export the file again"
        ));
    }
    let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &size| bits.checked_mul(size));
    if bits != usize::try_from(to - from).ok().and_then(|bytes| bytes.checked_mul(8)) {
        return Err(format!(
            "tensor `{name}` of shape {:?} and type {} does not take the {} bytes its header gives it",
            info.shape,
            info.dtype,
            to - from
        ));
    }
    let offset = start.checked_add(from).filter(|offset| offset.checked_add(to - from).is_some());
    let offset = offset.ok_or_else(|| format!("the data offsets of tensor `{name}` are beyond any file"))?;
    Ok(TensorMeta { dtype: info.dtype, shape: info.shape, offset, bytes: to - from })
}

fn malformed(path: &Path, reason: String) -> Error {
    Error::Malformed { path: path.to_path_buf(), reason }
}

#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
