//! Where bytes lie in a file: all that is needed to read them later, and on another thread.

use super::Error;
use super::codes::Made;
use super::scan::first_not_finite;
use crate::backend::Dtype;
use crate::files::{self, Identity};
use crate::host::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that are read before they are looked at: few enough that the processor still has them at hand.
const PIECE: usize = 1 << 18;

/// A file to read from.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Opened for every read; it must be the file that was looked at before.
    Closed(Identity),
    /// One of our own.
    Open(File),
}

impl Source {
    /// A file of somebody else.
    pub fn closed(path: &Path, identity: Identity) -> Self {
        Source { path: path.to_path_buf(), state: State::Closed(identity) }
    }

    /// A file that nobody else writes.
    pub fn own(path: PathBuf, file: File) -> Self {
        Source { path, state: State::Open(file) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, if it is one of our own.
    pub fn file(&self) -> Option<&File> {
        match &self.state {
            State::Open(file) => Some(file),
            State::Closed(_) => None,
        }
    }

    /// Bytes from a place in the file.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), Error> {
        let read = self.with_file(|file| read_exact_at(file, bytes, offset))?;
        read.map_err(Error::io("read", &self.path))
    }

    fn with_file<R>(&self, read: impl FnOnce(&File) -> R) -> Result<R, Error> {
        let identity = match &self.state {
            State::Open(file) => return Ok(read(file)),
            State::Closed(identity) => identity,
        };
        let file = open(&self.path)?;
        let result = read(&file);
        // Afterwards, so that a change during the read is seen too.
        if Identity::of(&file).map_err(Error::io("read", &self.path))? != *identity {
            return Err(Error::Changed { path: self.path.clone() });
        }
        Ok(result)
    }
}

/// Bytes in a file.
#[derive(Clone, Debug)]
pub struct Extent {
    source: Arc<Source>,
    offset: u64,
    len: usize,
    values: Option<Values>,
    /// How the bytes, values in float32, are coded in the file; `offset` is then where the tensor's codes begin.
    codes: Option<Arc<Made>>,
}

/// What the bytes are, where they are checked to be finite.
#[derive(Clone, Debug)]
struct Values {
    tensor: String,
    dtype: Dtype,
    /// Place of the first in the tensor.
    first: usize,
}

impl Extent {
    pub(super) fn new(source: &Arc<Source>, offset: u64, len: usize) -> Self {
        Extent { source: Arc::clone(source), offset, len, values: None, codes: None }
    }

    /// The values `range` of a tensor whose codes begin here, in float32.
    pub(super) fn decoded(self, tensor: &str, codes: &Arc<Made>, range: Range<usize>) -> Self {
        let values = Values { tensor: tensor.to_owned(), dtype: Dtype::F32, first: range.start };
        Extent { len: 4 * range.len(), values: Some(values), codes: Some(Arc::clone(codes)), ..self }
    }

    /// Some of these bytes, which are no values.
    pub(crate) fn part(&self, first: usize, len: usize) -> Self {
        Extent { offset: self.offset + first as u64, len, ..self.clone() }
    }

    #[cfg(test)]
    pub(super) fn empty() -> Self {
        let file = tempfile::tempfile().unwrap();
        Extent::new(&Arc::new(Source::own(PathBuf::new(), file)), 0, 0)
    }

    /// The same as values of a tensor from `first` on, to be checked to be finite.
    pub(super) fn of_values(self, tensor: &str, dtype: Dtype, first: usize) -> Self {
        Extent { values: Some(Values { tensor: tensor.to_owned(), dtype, first }), ..self }
    }

    /// How many bytes.
    pub fn bytes(&self) -> usize {
        self.len
    }

    /// Type of the values that are checked to be finite; none for raw bytes.
    pub fn dtype(&self) -> Option<Dtype> {
        self.values.as_ref().map(|values| values.dtype)
    }

    /// Whether these are the same bytes.
    pub fn is(&self, other: &Extent) -> bool {
        let same = Arc::ptr_eq(&self.source, &other.source) || self.source.path == other.source.path;
        let first =
            |extent: &Extent| extent.values.as_ref().filter(|_| extent.codes.is_some()).map(|v| v.first);
        same && (self.offset, self.len) == (other.offset, other.len) && first(self) == first(other)
    }

    /// Reads the bytes.
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.len];
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the bytes into a slice of their length. Values are looked at piece by piece as they come.
    pub fn read_into(&self, bytes: &mut [u8]) -> Result<(), Error> {
        if let (Some(codes), Some(values)) = (&self.codes, &self.values) {
            return self.decode_into(bytes, codes, values);
        }
        let mut bad = None;
        let mut at = 0;
        let read = self.source.with_file(|file| {
            bytes.chunks_mut(PIECE).try_for_each(|piece| {
                read_exact_at(file, piece, self.offset + at as u64)?;
                bad = bad.or_else(|| self.first_not_finite(piece, at));
                at += piece.len();
                Ok(())
            })
        })?;
        read.map_err(Error::io("read", &self.source.path))?;
        let (Some((index, value)), Some(Values { tensor, .. })) = (bad, &self.values) else { return Ok(()) };
        Err(Error::NotFinite { path: self.source.path.clone(), tensor: tensor.clone(), index, value })
    }

    /// The same where the file has codes of them.
    fn decode_into(&self, bytes: &mut [u8], codes: &Made, values: &Values) -> Result<(), Error> {
        let mut bad = None;
        let read = self.source.with_file(|file| {
            let range = values.first..values.first + bytes.len() / 4;
            let read = |codes: &mut [u8], at: u64| {
                read_exact_at(file, codes, self.offset + at).map_err(Error::io("read", &self.source.path))
            };
            codes.read(range, read, |at, piece| {
                let into = bytes[4 * (at - values.first)..].chunks_exact_mut(4);
                into.zip(piece).for_each(|(into, value)| into.copy_from_slice(&value.to_le_bytes()));
                let found = piece.iter().position(|value| !value.is_finite());
                bad = bad.or(found.map(|i| (at + i, if piece[i].is_nan() { "NaN" } else { "an infinity" })));
            })
        })?;
        read?;
        let Some((index, value)) = bad else { return Ok(()) };
        Err(Error::NotFinite { path: self.source.path.clone(), tensor: values.tensor.clone(), index, value })
    }

    /// Place in the tensor, and kind, of the first value of a piece that is none.
    fn first_not_finite(&self, piece: &[u8], at: usize) -> Option<(usize, &'static str)> {
        let Values { dtype, first, .. } = self.values.as_ref()?;
        let (index, value) = first_not_finite(*dtype, piece)?;
        Some((first + at / dtype.size() + index, value))
    }
}

pub(super) fn open(path: &Path) -> Result<File, Error> {
    files::open(path).map_err(Error::io("open", path))
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

#[cfg(unix)]
pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

#[cfg(target_family = "wasm")]
pub(super) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(bytes, offset)
}

#[cfg(target_family = "wasm")]
pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}
