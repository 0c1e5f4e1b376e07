//! A disk for a host that has none, with as much of `std::fs` as is used: a tree of folders and files, one a thread.
//!
//! Files are of three kinds. One that was [mounted](mount) is read where it lies, piece by piece, through [`ReadAt`]. One that
//! is written is kept in memory while it is small, and then goes to the [scratch](set_scratch) in blocks, so that outputs of
//! any size take no memory.

mod file;
mod tree;

pub use file::{File, OpenOptions};
pub use std::fs::TryLockError;
pub use tree::{DirEntry, FileType, Metadata, Permissions, ReadDir};

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tree::with;

/// Bytes that lie somewhere else.
pub trait ReadAt {
    /// How many.
    fn length(&self) -> u64;

    /// Fills `bytes` from a place on, which lies so that all are there.
    ///
    /// # Errors
    /// If the bytes are no longer to be had.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

/// Room for outputs, as long as it has to be.
pub trait Scratch {
    /// Fills `bytes` from a place that was written.
    ///
    /// # Errors
    /// As the host says.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all bytes.
    ///
    /// # Errors
    /// As the host says; where there is no room, [`io::ErrorKind::StorageFull`].
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

/// Puts somebody's bytes on the disk under a path; folders on the way are made, and what had the path goes.
///
/// # Errors
/// If a file is in the way.
pub fn mount(path: &Path, bytes: Rc<dyn ReadAt>) -> io::Result<()> {
    with(|tree| tree.mount(path, bytes))
}

/// Gives the disk its room for outputs.
pub fn set_scratch(scratch: Rc<dyn Scratch>) {
    with(|tree| tree.set_scratch(scratch));
}

/// Where the bytes of a file are: in memory, or at places of the scratch, each with its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// All of them.
    Memory(Vec<u8>),
    /// Pieces of the scratch, in order: offset and length.
    Scratch(Vec<(u64, u64)>),
}

/// Where the bytes of a written file are, for a host that hands them on without reading them.
///
/// # Errors
/// If there is no such file, or it was mounted.
pub fn place(path: &Path) -> io::Result<Place> {
    with(|tree| tree.place(path))
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    with(|tree| tree.metadata(path.as_ref()))
}

/// As `std::fs`: there are no links.
///
/// # Errors
/// As there.
pub fn symlink_metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    metadata(path)
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn canonicalize(path: impl AsRef<Path>) -> io::Result<PathBuf> {
    metadata(&path)?;
    Ok(tree::absolute(path.as_ref()))
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn create_dir(path: impl AsRef<Path>) -> io::Result<()> {
    with(|tree| tree.create_folder(path.as_ref()))
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    with(|tree| tree.create_folders(path.as_ref()))
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn read_dir(path: impl AsRef<Path>) -> io::Result<ReadDir> {
    with(|tree| tree.list(path.as_ref()))
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    with(|tree| tree.rename(from.as_ref(), to.as_ref()))
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn hard_link(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    with(|tree| tree.link(from.as_ref(), to.as_ref()))
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    with(|tree| tree.remove(path.as_ref(), tree::What::File))
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    with(|tree| tree.remove(path.as_ref(), tree::What::EmptyFolder))
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn remove_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    with(|tree| tree.remove(path.as_ref(), tree::What::Folder))
}

/// As `std::fs`, but that there are none to set.
///
/// # Errors
/// If there is nothing at the path.
pub fn set_permissions(path: impl AsRef<Path>, _: Permissions) -> io::Result<()> {
    metadata(path).map(drop)
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut File::open(path)?, &mut bytes)?;
    Ok(bytes)
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// As `std::fs`.
///
/// # Errors
/// As there.
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).open(path)?;
    io::Write::write_all(&mut file, bytes.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};

    struct Numbers(u64);

    impl ReadAt for Numbers {
        fn length(&self) -> u64 {
            self.0
        }

        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
            bytes.iter_mut().zip(offset..).for_each(|(byte, at)| *byte = at as u8);
            Ok(())
        }
    }

    /// Room for so many bytes.
    struct Room(RefCell<Vec<u8>>, usize);

    impl Scratch for Room {
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
            let at = offset as usize;
            bytes.copy_from_slice(&self.0.borrow()[at..at + bytes.len()]);
            Ok(())
        }

        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            let (mut room, end) = (self.0.borrow_mut(), offset as usize + bytes.len());
            if end > self.1 {
                return Err(ErrorKind::StorageFull.into());
            }
            let len = room.len().max(end);
            room.resize(len, 0);
            room[offset as usize..end].copy_from_slice(bytes);
            Ok(())
        }
    }

    #[test]
    fn what_is_mounted_is_read_where_it_lies() {
        mount(Path::new("/in/a/b.bin"), Rc::new(Numbers(1000))).unwrap();
        let mut file = File::open("/in/a/../a/b.bin").unwrap();
        assert_eq!((file.metadata().unwrap().len(), read("in/a/b.bin").unwrap().len()), (1000, 1000));
        file.seek(SeekFrom::Start(998)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [998 % 256, 999 % 256].map(|v| v as u8));
        let mut four = [0; 4];
        file.read_exact_at(&mut four, 3).unwrap();
        assert_eq!(four, [3, 4, 5, 6]);
        assert_eq!(file.read_exact_at(&mut four, 997).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert!(write("/in/a/b.bin", "text").is_err(), "it is somebody else's");
        assert!(place(Path::new("/in/a/b.bin")).is_err());
        assert!(mount(Path::new("/in/a/b.bin/c"), Rc::new(Numbers(1))).is_err(), "a file is in the way");
    }

    #[test]
    fn names_are_as_on_any_disk() {
        assert_eq!(read("/nothing").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(create_dir("/x/y").unwrap_err().kind(), ErrorKind::NotFound);
        create_dir_all("/x/y/z").unwrap();
        assert_eq!(create_dir("/x/y").unwrap_err().kind(), ErrorKind::AlreadyExists);
        write("/x/y/f", "one").unwrap();
        assert_eq!(File::create_new("/x/y/f").err().map(|e| e.kind()), Some(ErrorKind::AlreadyExists));
        let names = || -> Vec<_> { read_dir("/x/y").unwrap().map(|e| e.unwrap().file_name()).collect() };
        assert_eq!(names(), ["f", "z"]);
        rename("/x/y/f", "/x/g").unwrap();
        hard_link("/x/g", "/x/h").unwrap();
        assert_eq!(hard_link("/x/g", "/x/h").unwrap_err().kind(), ErrorKind::AlreadyExists);
        write("/x/g", "two").unwrap();
        assert_eq!(read_to_string("/x/h").unwrap(), "two");
        remove_file("/x/g").unwrap();
        assert_eq!(read_to_string("/x/h").unwrap(), "two");
        assert_eq!(remove_dir("/x").unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
        rename("/x/y", "/w").unwrap();
        assert!(metadata("/w/z").unwrap().is_dir());
        assert!(rename("/w", "/w/z/v").is_err(), "a folder into itself");
        remove_dir_all("/x").unwrap();
        assert!(metadata("/x/h").is_err());
        assert_eq!(canonicalize("w/./z/..").unwrap(), Path::new("/w"));
    }

    #[test]
    fn what_is_large_goes_to_the_scratch_and_its_room_is_used_again() {
        set_scratch(Rc::new(Room(RefCell::default(), 4 << 20)));
        let bytes: Vec<u8> = (0..(3 << 20) - 5).map(|i: u32| (i / 7) as u8).collect();
        for _ in 0..5 {
            let mut file = File::create_new("/large").unwrap();
            bytes.chunks(777_777).for_each(|piece| file.write_all(piece).unwrap());
            assert!(read("/large").unwrap() == bytes);
            let Place::Scratch(pieces) = place(Path::new("/large")).unwrap() else { panic!("in memory") };
            assert_eq!(pieces.iter().map(|(_, len)| len).sum::<u64>(), bytes.len() as u64);
            file.write_all_at(b"abc", (1 << 20) - 1).unwrap();
            assert_eq!(&read("/large").unwrap()[(1 << 20) - 1..(1 << 20) + 2], b"abc");
            file.write_all_at(b"xyz", (3 << 20) + 2).unwrap();
            let all = read("/large").unwrap();
            assert_eq!((all.len(), &all[(3 << 20) - 5..]), ((3 << 20) + 5, &b"\0\0\0\0\0\0\0xyz"[..]));
            file.set_len((2 << 20) + 1).unwrap();
            assert!(read("/large").unwrap()[..1 << 20] == all[..1 << 20]);
            assert_eq!(metadata("/large").unwrap().len(), (2 << 20) + 1);
            remove_file("/large").unwrap();
            assert!(file.metadata().is_ok(), "an open file stays until it is closed");
        }
        let mut file = File::create_new("/larger").unwrap();
        let full = file.write_all(&vec![0; 5 << 20]).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }
}
