//! One safetensors file: its header, checked and owned, and reads of byte ranges.

use super::codes::{Codes, Made};
use super::extent::{Extent, Source, open, read_exact_at};
use super::header::{self, Header};
use super::rows::Rows;
use super::{Error, Stored, TensorMeta, magic};
use crate::backend::Dtype;
use crate::files::{self, Identity};
use crate::host::fs::File;
use indexmap::IndexMap;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Bytes of the number that starts a file: the length of its header.
pub(super) const LENGTH_PREFIX: u64 = 8;
/// The format's own limit on a header.
const MAX_HEADER: u64 = 100_000_000;

/// A safetensors file whose header has been read.
///
/// No file stays open or mapped: values are read with positioned reads, so that a model of any size costs only the
/// range being read, and hundreds of shards cost no file handles. That it is still the same file is checked at every read.
#[derive(Clone, Debug)]
pub struct TensorFile {
    source: Arc<Source>,
    length: u64,
    header_bytes: u64,
    tensors: IndexMap<String, TensorMeta>,
    metadata: BTreeMap<String, String>,
    /// How tensors are coded whose entry says float32.
    codes: HashMap<String, Arc<Made>>,
}

impl TensorFile {
    /// Reads and checks the header: the format's own rules, and that the file is exactly as long as the header says.
    pub fn open(path: &Path) -> Result<TensorFile, Error> {
        let file = open(path)?;
        let identity = Identity::of(&file).map_err(Error::io("read", path))?;
        let length = identity.length();
        let header = read_header(&file, path, length)?;
        let header_bytes = header.len() as u64;
        let start = LENGTH_PREFIX + header_bytes;
        let Header { metadata, tensors } =
            header::parse(&header, start).map_err(|reason| malformed(path, reason))?;
        let end = tensors.last().map_or(start, |(_, last)| last.offset + last.bytes);
        if end != length {
            return Err(malformed(path, wrong_length(end, length)));
        }
        Ok(TensorFile {
            source: Arc::new(Source::closed(path, identity)),
            length,
            header_bytes,
            tensors,
            metadata,
            codes: HashMap::new(),
        })
    }

    /// A file of another format, all of whose tensors are coded.
    pub(super) fn of_codes(
        source: Arc<Source>,
        length: u64,
        header_bytes: u64,
        tensors: IndexMap<String, TensorMeta>,
        codes: HashMap<String, Arc<Made>>,
    ) -> TensorFile {
        TensorFile { source, length, header_bytes, tensors, metadata: BTreeMap::new(), codes }
    }

    /// Sees a tensor as the floats that its codes stand for, in this shape.
    pub(super) fn decode(&mut self, name: &str, shape: Vec<usize>, codes: Codes) {
        if let Some(meta) = self.tensors.get_mut(name) {
            meta.shape = shape;
            (meta.dtype, meta.bytes) = (Stored::F32, 4 * meta.elements() as u64);
            self.codes.insert(name.to_owned(), Arc::new(Made::Of(codes)));
        }
    }

    /// A tensor of this file with other rows, by itself.
    pub(super) fn with_rows(&self, name: &str, shape: Vec<usize>, rows: Rows) -> Result<TensorFile, Error> {
        let bytes = 4 * shape.iter().product::<usize>() as u64;
        let meta = TensorMeta { dtype: Stored::F32, shape, bytes, ..*self.meta(name)? };
        Ok(self.of_rows(vec![(name.to_owned(), meta, rows)]))
    }

    /// Tensors of rows of others, as a file of their own in the place of this one.
    pub(super) fn of_rows(&self, made: Vec<(String, TensorMeta, Rows)>) -> TensorFile {
        let (mut tensors, mut codes) = (IndexMap::new(), HashMap::new());
        for (name, meta, rows) in made {
            codes.insert(name.clone(), Arc::new(Made::From(rows)));
            tensors.insert(name, meta);
        }
        let (source, metadata) = (Arc::clone(&self.source), self.metadata.clone());
        TensorFile { source, length: self.length, header_bytes: self.header_bytes, tensors, metadata, codes }
    }

    /// Whether a tensor is coded.
    pub(super) fn is_coded(&self, name: &str) -> bool {
        matches!(self.codes.get(name).map(AsRef::as_ref), Some(Made::Of(_)))
    }

    /// What the values of a tensor of other rows are written as.
    pub(super) fn dtype_of_rows(&self, name: &str) -> Option<Dtype> {
        match self.codes.get(name).map(AsRef::as_ref) {
            Some(Made::From(rows)) => Some(rows.dtype),
            _ => None,
        }
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        self.source.path()
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
            .ok_or_else(|| Error::NoTensor { path: self.path().to_path_buf(), tensor: name.to_owned() })
    }

    /// Raw bytes `range` of a tensor, counted from its first byte.
    pub fn read_bytes(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, Error> {
        self.bytes(name, range)?.read()
    }

    /// Where these bytes lie.
    pub fn bytes(&self, name: &str, range: Range<u64>) -> Result<Extent, Error> {
        let meta = self.meta(name)?;
        if let Some(codes) = self.codes.get(name) {
            let values = (range.start / 4) as usize..(range.end.min(meta.bytes) / 4) as usize;
            return Ok(Extent::new(&self.source, meta.offset, 0).decoded(name, codes, values));
        }
        let wanted = range.end.min(meta.bytes).saturating_sub(range.start);
        Ok(Extent::new(&self.source, meta.offset + range.start, wanted as usize))
    }

    /// Bytes of the whole file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// SHA-256 of the header, which tells files of other names, shapes and types apart, in lower-case hexadecimal.
    pub fn header_hash(&self) -> Result<String, Error> {
        let mut header = vec![0; self.header_bytes as usize];
        self.source.read(&mut header, LENGTH_PREFIX)?;
        Ok(super::fingerprint::hexadecimal(&Sha256::digest(&header)))
    }

    /// Raw bytes of the values `range` of a floating-point tensor, checked to be finite.
    pub fn read_values(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, Error> {
        self.values(name, range)?.read()
    }

    /// Where these values lie.
    pub fn values(&self, name: &str, range: Range<usize>) -> Result<Extent, Error> {
        let Some(dtype) = self.meta(name)?.float() else {
            let reason = format!("tensor `{name}` does not hold floating-point values that can be merged");
            return Err(malformed(self.path(), reason));
        };
        let size = dtype.size() as u64;
        let bytes = self.bytes(name, range.start as u64 * size..range.end as u64 * size)?;
        if self.codes.contains_key(name) {
            return Ok(bytes);
        }
        Ok(bytes.of_values(name, dtype, range.start))
    }
}

fn read_header(file: &File, path: &Path, length: u64) -> Result<Vec<u8>, Error> {
    let mut prefix = [0; LENGTH_PREFIX as usize];
    if length < LENGTH_PREFIX {
        return Err(malformed(path, format!("it has only {length} bytes; download or export it again")));
    }
    read_exact_at(file, &mut prefix, 0).map_err(Error::io("read", path))?;
    let bytes = u64::from_le_bytes(prefix);
    if files::is_lfs_pointer(file) {
        return Err(malformed(path, format!("it {}", files::LFS_POINTER)));
    }
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

fn malformed(path: &Path, reason: String) -> Error {
    Error::Malformed { path: path.to_path_buf(), reason }
}
