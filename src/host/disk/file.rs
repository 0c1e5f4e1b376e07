//! An open file.

use super::tree::{Id, Metadata, with};
use std::fs::TryLockError;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// As `std::fs::File`.
#[derive(Debug)]
pub struct File {
    id: Id,
    at: AtomicU64,
    writable: bool,
}

/// As `std::fs::OpenOptions`.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    write: bool,
    create: bool,
    create_new: bool,
    truncate: bool,
}

impl OpenOptions {
    /// A file is always read.
    pub fn read(&mut self, _: bool) -> &mut Self {
        self
    }

    /// To be written.
    pub fn write(&mut self, write: bool) -> &mut Self {
        self.write = write;
        self
    }

    /// Made where there is none.
    pub fn create(&mut self, create: bool) -> &mut Self {
        self.create = create;
        self
    }

    /// Made, and refused where there is one.
    pub fn create_new(&mut self, create_new: bool) -> &mut Self {
        self.create_new = create_new;
        self
    }

    /// Emptied.
    pub fn truncate(&mut self, truncate: bool) -> &mut Self {
        self.truncate = truncate;
        self
    }

    /// Opens the file.
    ///
    /// # Errors
    /// As `std::fs`.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        with(|tree| {
            let id = match tree.find(path) {
                Ok(_) if self.create_new => return Err(ErrorKind::AlreadyExists.into()),
                Err(e) if e.kind() == ErrorKind::NotFound && (self.create || self.create_new) => {
                    tree.create_file(path)?
                }
                found => found?,
            };
            if self.write {
                tree.check_writable(id)?;
            }
            if self.truncate {
                tree.empty(id);
            }
            tree.hold(id);
            Ok(File { id, at: AtomicU64::new(0), writable: self.write })
        })
    }
}

impl File {
    /// For reading.
    ///
    /// # Errors
    /// As `std::fs`.
    pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::default().open(path)
    }

    /// An empty one, whatever was there, for reading and writing.
    ///
    /// # Errors
    /// As `std::fs`.
    pub fn create(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::default().write(true).create(true).truncate(true).open(path)
    }

    /// A new one, for reading and writing.
    ///
    /// # Errors
    /// As `std::fs`.
    pub fn create_new(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::default().write(true).create_new(true).open(path)
    }

    /// What to open.
    pub fn options() -> OpenOptions {
        OpenOptions::default()
    }

    /// What it is.
    ///
    /// # Errors
    /// None on this disk.
    pub fn metadata(&self) -> io::Result<Metadata> {
        with(|tree| tree.metadata_of(self.id))
    }

    /// Nothing is kept back.
    ///
    /// # Errors
    /// None on this disk.
    pub fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    /// The same: nothing is kept back.
    ///
    /// # Errors
    /// None on this disk.
    pub fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    /// A disk has one run, so that nobody else has a lock.
    ///
    /// # Errors
    /// None on this disk.
    pub fn try_lock(&self) -> Result<(), TryLockError> {
        Ok(())
    }

    /// The same file, read and written from its own place on.
    ///
    /// # Errors
    /// None on this disk.
    pub fn try_clone(&self) -> io::Result<File> {
        with(|tree| tree.hold(self.id));
        Ok(File { id: self.id, at: AtomicU64::new(self.at.load(Relaxed)), writable: self.writable })
    }

    /// Cuts the file short, or fills it with zeros.
    ///
    /// # Errors
    /// If the file was opened for reading, or there is no room.
    pub fn set_len(&self, length: u64) -> io::Result<()> {
        if !self.writable {
            return Err(ErrorKind::PermissionDenied.into());
        }
        with(|tree| tree.set_length(self.id, length))
    }

    /// Fills `bytes` from a place on.
    ///
    /// # Errors
    /// If the file ends before.
    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| self.metadata().is_ok_and(|meta| meta.len() < end)) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.content()?.read_at(bytes, offset)
    }

    /// Writes all bytes to a place; between the end of the file and that place are zeros then.
    ///
    /// # Errors
    /// If the file was opened for reading, or there is no room.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !self.writable {
            return Err(ErrorKind::PermissionDenied.into());
        }
        with(|tree| tree.write_at(self.id, bytes, offset))
    }

    fn content(&self) -> io::Result<super::tree::Reader> {
        with(|tree| tree.reader(self.id))
    }

    fn read_from(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.metadata()?.len().saturating_sub(offset);
        let count = (bytes.len() as u64).min(left) as usize;
        if count > 0 {
            self.content()?.read_at(&mut bytes[..count], offset)?;
        }
        Ok(count)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        with(|tree| tree.release(self.id));
    }
}

impl Read for &File {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let at = self.at.load(Relaxed);
        let count = self.read_from(bytes, at)?;
        self.at.store(at + count as u64, Relaxed);
        Ok(count)
    }
}

impl Write for &File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let at = self.at.load(Relaxed);
        self.write_all_at(bytes, at)?;
        self.at.store(at + bytes.len() as u64, Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for &File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.load(Relaxed).checked_add_signed(by),
            SeekFrom::End(by) => self.metadata()?.len().checked_add_signed(by),
        };
        let at = at.ok_or(ErrorKind::InvalidInput)?;
        self.at.store(at, Relaxed);
        Ok(at)
    }
}

impl Read for File {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self).read(bytes)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&*self).seek(to)
    }
}
