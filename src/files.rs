//! Files from strangers: only regular ones are opened, and no more of them is read than is expected.

use crate::host::Instant;
use crate::host::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Bytes of a settings file (configuration, index, tokenizer options) past which it is taken for something else.
pub(crate) const SETTINGS: u64 = 16 << 20;
/// Bytes of a tokenizer; those of large vocabularies have some 35 MB.
pub(crate) const TOKENIZER: u64 = 128 << 20;

/// Opens a regular file. A FIFO, a device or a folder is refused without waiting for it.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, NONBLOCK); // a FIFO would wait for its writer
    let file = options.open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let what = if kind.is_dir() { "it is a folder" } else { "it is not a regular file" };
    Err(io::Error::other(what))
}

/// `O_NONBLOCK`, which does nothing to regular files.
#[cfg(any(target_os = "linux", target_os = "android"))]
const NONBLOCK: i32 = 0o4000;
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
const NONBLOCK: i32 = 0x4;

/// All of a regular file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    if length > limit {
        return Err(too_large(limit));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    read_at_most(file, limit, &mut bytes)?;
    Ok(bytes)
}

/// All of a stream that ends within `limit` bytes.
pub(crate) fn read_at_most(stream: impl Read, limit: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
    stream.take(limit + 1).read_to_end(bytes)?;
    if bytes.len() as u64 > limit { Err(too_large(limit)) } else { Ok(()) }
}

/// All of a file that may be a pipe (`<(...)` of a shell), of at most `limit` bytes. Nothing is waited for that does not begin
/// to come.
pub(crate) fn read_stream(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, NONBLOCK); // a FIFO would wait for its writer
    let mut file = options.open(path)?;
    if file.metadata()?.is_file() {
        return read(path, limit);
    }
    let started = Instant::now();
    let (mut bytes, mut chunk) = (Vec::new(), [0; 1 << 16]);
    loop {
        let found = match file.read(&mut chunk) {
            Ok(found) => Some(found),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None, // a writer is there and has not written
            Err(e) => return Err(e),
        };
        match found {
            Some(0) if !bytes.is_empty() => return Ok(bytes),
            Some(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ if bytes.is_empty() && started.elapsed() > PATIENCE => {
                return Err(io::Error::other("it is a pipe into which nothing is written"));
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
        if bytes.len() as u64 > limit {
            return Err(too_large(limit));
        }
    }
}

/// How long the first byte of a pipe is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// What tells a file from one that took its place, and from itself after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    length: u64,
    modified: Option<SystemTime>,
    /// Device and number there, where the system has them.
    place: (u64, u64),
}

impl Identity {
    /// Of an open file.
    pub fn of(file: &File) -> io::Result<Identity> {
        let meta = file.metadata()?;
        #[cfg(unix)]
        let place = {
            use std::os::unix::fs::MetadataExt;
            (meta.dev(), meta.ino())
        };
        #[cfg(not(unix))]
        let place = (0, 0);
        Ok(Identity { length: meta.len(), modified: meta.modified().ok(), place })
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// How the pointer begins that Git LFS keeps in place of a large file.
const LFS_START: &[u8] = b"version https://git-lfs.github.com/spec/";
/// What is said of such a file.
pub(crate) const LFS_POINTER: &str =
    "is a Git LFS pointer, which stands for a file that was not downloaded; get it with `git lfs pull`";

/// Whether an open file, read from where it stands, is such a pointer.
pub(crate) fn is_lfs_pointer(file: &File) -> bool {
    let mut start = Vec::new();
    let read = file.take(LFS_START.len() as u64).read_to_end(&mut start);
    read.is_ok() && start == LFS_START
}

fn too_large(limit: u64) -> io::Error {
    io::Error::other(format!("it has more than the {} MiB expected of such a file", limit >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_the_expected_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, [7; 100]).unwrap();
        assert_eq!(read(&path, 100).unwrap(), [7; 100]);
        assert!(read(&path, 99).is_err());
        assert!(open(folder.path()).is_err());
        assert!(read(Path::new("/dev/zero"), 10).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_fifo_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        if made.is_ok_and(|status| status.success()) {
            assert!(open(&path).is_err());
            assert!(read_stream(&path, 10).is_err(), "nobody writes");
            let writer = std::thread::spawn({
                let path = path.clone();
                move || std::fs::write(path, "text")
            });
            assert_eq!(read_stream(&path, 10).unwrap(), b"text");
            writer.join().unwrap().unwrap();
        }
    }
}
