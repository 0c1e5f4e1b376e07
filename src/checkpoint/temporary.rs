//! Folders that a run writes in before its results have their names: one for every wanted path, locked while the run
//! lives, and removed with everything in it when the run ends otherwise than by finishing.
//!
//! The name follows from the wanted path, so that two runs meet there: the second finds the folder locked and is refused,
//! or finds it unlocked, left by a run that was killed, and takes it over.

use super::Error;
use crate::host::PathExt;
use crate::host::fs::{self, File};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the name of every such folder ends in.
const ENDING: &str = ".partial-esmerge";
/// Bytes that file systems give a name.
const LONGEST_NAME: usize = 255;

/// All folders of this process, to be removed if it is stopped.
static LIVE: Mutex<Vec<Live>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Live {
    folder: PathBuf,
    /// Parents created for it, outermost first.
    parents: Vec<PathBuf>,
    /// Whether it outlives a run that does not finish.
    kept: bool,
}

/// A temporary folder of this run.
#[derive(Debug)]
pub struct Temporary {
    folder: PathBuf,
    /// Open, and locked where the file system has locks: the folder itself, so that nothing more lies in it.
    lock: Option<File>,
    left: Option<Left>,
}

/// What a run that was killed had left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The folder it was writing in.
    pub path: PathBuf,
    /// Bytes of the files in it.
    pub bytes: u64,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, megabytes) = (self.path.display(), self.bytes as f64 / 1e6);
        write!(f, "{path} ({megabytes:.1} MB), left by a run that was killed, was removed")
    }
}

impl Temporary {
    /// A folder beside `wanted`; missing parents are created, and disappear with it.
    pub fn beside(wanted: &Path) -> Result<Temporary, Error> {
        Temporary::create(wanted, wanted.with_file_name(hidden(wanted, ENDING)))
    }

    /// A folder inside the existing folder `wanted`.
    pub fn inside(wanted: &Path) -> Result<Temporary, Error> {
        Temporary::create(wanted, Temporary::folder_inside(wanted))
    }

    /// A folder that other runs may be using too, and that outlives this run where it was there before. Nothing in it is touched.
    pub(super) fn shared(folder: PathBuf) -> Result<Temporary, Error> {
        let parents = missing(parent(&folder));
        let mut live = live();
        let created = parents.iter().chain([&folder]).try_for_each(|p| match fs::create_dir(p) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists && p.leads_to_folder() => Ok(()),
            created => created.map_err(Error::io("create", p)),
        });
        let fresh =
            created.is_ok() && fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_none());
        let entry = Live { folder: folder.clone(), parents, kept: !fresh };
        if let Err(error) = created {
            entry.remove_parents();
            return Err(error);
        }
        live.push(entry);
        Ok(Temporary { folder, lock: None, left: None })
    }

    /// The name of the folder inside a wanted one.
    pub(super) fn folder_inside(wanted: &Path) -> PathBuf {
        wanted.join(ENDING)
    }

    fn create(wanted: &Path, folder: PathBuf) -> Result<Temporary, Error> {
        let parents = missing(parent(&folder));
        let mut live = live();
        live.push(Live { folder: folder.clone(), parents: Vec::new(), kept: false });
        let created = parents.iter().try_for_each(|p| fs::create_dir(p).map_err(Error::io("create", p)));
        if let Some(entry) = live.last_mut() {
            entry.parents = parents;
        }
        let locked = match created {
            Ok(()) => lock_or_take_over(wanted, &folder),
            Err(error) => Err(error),
        };
        match locked {
            Ok((lock, left)) => Ok(Temporary { folder, lock, left }),
            Err(error) => {
                live.pop().iter().for_each(Live::remove_parents);
                Err(error)
            }
        }
    }

    /// Makes sure that no other run is about to fill the folder `wanted`.
    pub(super) fn refuse_another_inside(wanted: &Path) -> Result<(), Error> {
        if wanted.join(ENDING).is_there() {
            drop(Temporary::inside(wanted)?);
        }
        Ok(())
    }

    /// Whether a file's name is that of the folder inside a wanted one.
    pub(super) fn is_inside(name: &OsStr) -> bool {
        name == ENDING
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// What a killed run had left in its place.
    pub fn left(&self) -> Option<&Left> {
        self.left.as_ref()
    }

    /// Lets `publish` give the contents their names, undisturbed by a signal; what it leaves in the folder is removed. On
    /// failure all is removed, parents too.
    pub fn publish<T>(self, publish: impl FnOnce(&Path) -> Result<T, Error>) -> Result<T, Error> {
        let mut live = live();
        let done = publish(&self.folder)?; // an error drops the guard first, then `self`
        live.retain(|entry| entry.folder != self.folder);
        if self.lock.as_ref().is_none_or(|lock| is_at(lock, &self.folder)) {
            let _ = fs::remove_dir_all(&self.folder); // where only files of it were given names
        }
        Ok(done)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let mut live = live();
        if let Some(at) = live.iter().position(|entry| entry.folder == self.folder) {
            live.swap_remove(at).remove();
        }
    }
}

/// Lets a temporary folder outlive a run that does not finish, and those that it lies in.
pub(super) fn keep(folder: &Path) {
    live().iter_mut().filter(|entry| folder.starts_with(&entry.folder)).for_each(|entry| entry.kept = true);
}

/// Removes every temporary folder of this process but those that are kept, and gives these. The process must end then: whoever
/// wants to create, publish or drop one waits for ever.
pub fn remove_all() -> Vec<PathBuf> {
    let live = live();
    live.iter().for_each(Live::remove);
    let kept = live.iter().filter(|entry| entry.kept).map(|entry| entry.folder.clone()).collect();
    std::mem::forget(live);
    kept
}

fn live() -> MutexGuard<'static, Vec<Live>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    fn remove(&self) {
        if self.kept {
            return;
        }
        // Other threads may still be creating files in it.
        for _ in 0..100 {
            match fs::remove_dir_all(&self.folder) {
                Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => {}
                _ => break,
            }
        }
        self.remove_parents();
    }

    fn remove_parents(&self) {
        for folder in self.parents.iter().rev() {
            let _ = fs::remove_dir(folder); // only while empty: someone else may use it by now
        }
    }
}

/// Creates the folder and locks it; an unlocked one that is there already is emptied.
fn lock_or_take_over(wanted: &Path, folder: &Path) -> Result<(Option<File>, Option<Left>), Error> {
    let refuse = |reason: &str| {
        let reason = format!("{} {reason}", folder.display());
        Error::Output { path: wanted.to_path_buf(), reason }
    };
    // A run that ends between two of these steps takes the folder away.
    for _ in 0..100 {
        let fresh = match fs::create_dir(folder) {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
            Err(e) => return Err(Error::io("create", folder)(e)),
        };
        match lock(folder) {
            Lock::Held(lock) if fresh => return Ok((Some(lock), None)),
            Lock::None if fresh => return Ok((None, None)),
            Lock::Held(lock) => {
                let left = Left { path: folder.to_path_buf(), bytes: bytes_in(folder) };
                empty(folder).map_err(Error::io("remove what a killed run left in", folder))?;
                return Ok((Some(lock), Some(left)));
            }
            Lock::Taken => {
                return Err(refuse(
                    "belongs to another run that is writing there; wait for it, or name another output",
                ));
            }
            Lock::None => return Err(refuse("is in the way; remove it unless another run is writing there")),
            Lock::Gone => {}
        }
    }
    Err(refuse("cannot be locked; remove it unless another run is writing there"))
}

#[cfg_attr(not(unix), allow(dead_code))] // folders have no locks there
enum Lock {
    Held(File),
    Taken,
    /// There is no telling: no folder, or a file system without locks.
    None,
    /// The folder was removed or replaced meanwhile.
    Gone,
}

#[cfg(unix)]
fn lock(folder: &Path) -> Lock {
    use crate::host::fs::TryLockError;
    let file = match File::open(folder) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Lock::Gone,
        Err(_) => return Lock::None,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Lock::Taken,
        Err(TryLockError::Error(_)) => return Lock::None,
    }
    match file.metadata() {
        Ok(meta) if !meta.is_dir() => Lock::None,
        _ if is_at(&file, folder) => Lock::Held(file),
        _ => Lock::Gone,
    }
}

/// Whether this file is still the one that the path leads to.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn lock(_folder: &Path) -> Lock {
    Lock::None
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.is_there()
}

/// The folder a path lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `.NAME` with an ending, cut where that is longer than a name may be.
pub(super) fn hidden(wanted: &Path, ending: &str) -> String {
    format!(".{}", beside(wanted, ending))
}

/// `NAME` with an ending, cut where that, with a dot before it, is longer than a name may be.
pub(super) fn beside(wanted: &Path, ending: &str) -> String {
    let name = wanted.file_name().unwrap_or_default().to_string_lossy();
    if name.len() + ending.len() < LONGEST_NAME {
        return format!("{name}{ending}");
    }
    let hash = Sha256::digest(name.as_bytes());
    let start = &name[..(0..=200).rev().find(|&i| name.is_char_boundary(i)).unwrap_or(0)];
    format!("{start}~{:02x}{:02x}{:02x}{:02x}{ending}", hash[0], hash[1], hash[2], hash[3])
}

/// Ancestors that are not there, outermost first.
fn missing(folder: &Path) -> Vec<PathBuf> {
    let missing = folder.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.is_there());
    let mut missing: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
    missing.reverse();
    missing
}

/// Bytes of the files in a folder and those in it.
pub(crate) fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_in(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(bytes).sum()
}

fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_disappears_with_its_run_and_so_do_its_parents() {
        let place = tempfile::tempdir().unwrap();
        let temporary = Temporary::beside(&place.path().join("a/b/out")).unwrap();
        fs::write(temporary.path().join("x"), "x").unwrap();
        drop(temporary);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_second_run_is_refused_and_a_dead_one_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let wanted = place.path().join("out");
        let first = Temporary::beside(&wanted).unwrap();
        let error = Temporary::beside(&wanted).unwrap_err().to_string();
        assert!(error.contains("another run") && error.contains("out"), "{error}");
        let path = first.path().to_path_buf();
        drop(first);

        fs::create_dir_all(path.join("deep")).unwrap();
        fs::write(path.join("deep/x"), [0; 100]).unwrap();
        let next = Temporary::beside(&wanted).unwrap();
        assert_eq!(next.left(), Some(&Left { path: path.clone(), bytes: 100 }));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn what_is_published_stays() {
        let place = tempfile::tempdir().unwrap();
        let wanted = place.path().join("new/out");
        let temporary = Temporary::beside(&wanted).unwrap();
        temporary.publish(|folder| fs::rename(folder, &wanted).map_err(Error::io("rename", folder))).unwrap();
        assert!(wanted.is_dir());
        assert_eq!(fs::read_dir(wanted.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn the_longest_name_has_a_temporary_one() {
        for name in ["x".repeat(255), "é".repeat(127), "模".repeat(85)] {
            assert!(hidden(Path::new(&name), ENDING).len() <= LONGEST_NAME);
        }
        let [a, b] = ["a", "b"].map(|end| hidden(Path::new(&("x".repeat(254) + end)), ENDING));
        assert_ne!(a, b);
    }
}
