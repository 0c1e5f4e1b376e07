//! Keeps two runs apart that would write the same files, on one machine or on several that share a file system.
//!
//! A lock is a file that says who holds it. On one machine the kernel's lock on that file decides: it goes with its process,
//! however that ends. Between machines, whose kernels may not know of each other's locks, the holder writes to the file every
//! few seconds, and one that has not done so for [`SILENCE`] is dead.

use super::super::{Error, parent};
#[cfg(not(unix))]
use crate::host::PathExt;
use crate::host::fs::{self, File, TryLockError};
use serde::{Deserialize, Serialize};
#[cfg(unix)]
use std::io;
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// What the name of a lock ends in.
pub(super) const ENDING: &str = ".lock";
/// Time between two signs of life.
const BEAT: Duration = Duration::from_secs(5);
/// A holder on another machine that was silent for so long is dead: four signs of life were missed.
const SILENCE: Duration = Duration::from_secs(20);

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    process: u32,
    host: String,
    /// Tells one run of a machine from the next, and machines of one name apart.
    boot: String,
}

impl Holder {
    fn this() -> Holder {
        let read =
            |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let host = read("/proc/sys/kernel/hostname");
        let host = if host.is_empty() { std::env::var("HOSTNAME").unwrap_or_default() } else { host };
        Holder { process: std::process::id(), host, boot: read("/proc/sys/kernel/random/boot_id") }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {}", self.process)?;
        if self.host.is_empty() { Ok(()) } else { write!(f, " on {}", self.host) }
    }
}

/// A lock that this run holds until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    file: File,
    beating: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Whether a lock is held.
enum Found {
    Free(File),
    Held(Option<Holder>),
    /// By a run on another machine, or there is no telling: it is alive if the file changes.
    Unknown(File, Option<Holder>),
}

impl Lock {
    /// Takes a lock; `what` says what it stands for where it is held by another run. A run on another machine that may be dead
    /// is waited for, and `waiting` told so.
    pub fn take(path: &Path, what: &str, waiting: &mut dyn FnMut(&str)) -> Result<Lock, Error> {
        let refuse = |holder: Option<Holder>| {
            let holder = holder.map_or_else(|| "another run".to_owned(), |holder| holder.to_string());
            let reason = format!("{holder} is at work on {what}; wait for it, or name another output");
            Err(Error::Journal { path: parent(path).to_path_buf(), reason })
        };
        let mut tries = 0;
        loop {
            let file = match look(path, true)? {
                Some(Found::Free(file)) => file,
                // perhaps by a run that only looked whether it is held
                Some(Found::Held(_)) if tries < 5 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
                Some(Found::Held(holder)) => return refuse(holder),
                Some(Found::Unknown(file, holder)) => match is_silent(path, holder.as_ref(), waiting)? {
                    true => file,
                    false => return refuse(holder),
                },
                None => continue, // its holder has just removed it
            };
            if let Some(lock) = Lock::hold(path, file)? {
                return Ok(lock);
            }
        }
    }

    /// The holder of a lock that is held, as words.
    pub fn holder(path: &Path, waiting: &mut dyn FnMut(&str)) -> Result<Option<String>, Error> {
        let words =
            |holder: Option<Holder>| holder.map_or_else(|| "another run".to_owned(), |h| h.to_string());
        Ok(match look(path, false)? {
            None | Some(Found::Free(_)) => None,
            Some(Found::Held(holder)) => Some(words(holder)),
            Some(Found::Unknown(_, holder)) => match is_silent(path, holder.as_ref(), waiting)? {
                true => None,
                false => Some(words(holder)),
            },
        })
    }

    fn hold(path: &Path, mut file: File) -> Result<Option<Lock>, Error> {
        let write = || Error::io("write", path);
        let text = serde_json::to_string(&Holder::this()).map_err(|e| write()(e.into()))?;
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
        written.map_err(write())?;
        if !is_at(&file, path) {
            return Ok(None);
        }
        let own = file.try_clone().map_err(write())?;
        let beating = beat(own);
        Ok(Some(Lock { path: path.to_path_buf(), file, beating }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.beating.take() {
            drop(stop);
            let _ = thread.join();
        }
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path); // before it is unlocked, so that nobody else has it
        }
    }
}

/// Writes to a lock every few seconds, so that the file system's own clock marks it.
fn beat(mut file: File) -> Option<(Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = channel::<()>();
    let run = move || {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(BEAT) {
            let _ = file.rewind().and_then(|()| file.write_all(b"{")); // what it begins with anyway
        }
    };
    let thread = std::thread::Builder::new().name("lock".to_owned()).spawn(run).ok()?;
    Some((stop, thread))
}

/// What there is at a path: none, unless it is to be created.
fn look(path: &Path, create: bool) -> Result<Option<Found>, Error> {
    let opened = File::options().read(true).write(true).create(create).truncate(false).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound && !create => return Ok(None),
        Err(e) => return Err(Error::io("open", path)(e)),
    };
    let locked = file.try_lock();
    let holder = read_holder(&mut file);
    Ok(Some(match locked {
        Err(TryLockError::WouldBlock) => Found::Held(holder),
        Err(TryLockError::Error(_)) => Found::Unknown(file, holder),
        Ok(()) if !is_at(&file, path) => return Ok(None),
        Ok(()) => match &holder {
            Some(other) if !is_here(other) => Found::Unknown(file, holder),
            _ => Found::Free(file),
        },
    }))
}

/// Whether a run that no longer holds the kernel's lock was one of this machine, and so has ended.
fn is_here(holder: &Holder) -> bool {
    let this = Holder::this();
    holder.boot == this.boot || holder.host == this.host
}

fn read_holder(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(1 << 12).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Waits until a holder on another machine shows that it lives, or has not for too long. The clock is the file system's.
fn is_silent(path: &Path, holder: Option<&Holder>, waiting: &mut dyn FnMut(&str)) -> Result<bool, Error> {
    let Some(holder) = holder else { return Ok(true) }; // it never said who it was: it died before it began
    let seen = modified(path)?;
    let mut told = false;
    loop {
        let age = file_system_now(parent(path)).and_then(|now| Ok(now.duration_since(modified(path)?)));
        match age? {
            _ if modified(path)? != seen => return Ok(false),
            Ok(age) if age > SILENCE => return Ok(true),
            _ => {}
        }
        if !told {
            waiting(&format!(
                "waits until {holder} is sure to have ended: {} seconds at most",
                SILENCE.as_secs()
            ));
            told = true;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn modified(path: &Path) -> Result<SystemTime, Error> {
    fs::metadata(path).and_then(|meta| meta.modified()).map_err(Error::io("read", path))
}

/// The time by the clock that marks the files of a folder.
fn file_system_now(folder: &Path) -> Result<SystemTime, Error> {
    let path = folder.join(format!("clock-{}", std::process::id()));
    let marked = fs::write(&path, b"").and_then(|()| fs::metadata(&path)?.modified());
    let _ = fs::remove_file(&path);
    marked.map_err(Error::io("write", &path))
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |meta: io::Result<fs::Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).ok();
    place(file.metadata()).is_some_and(|own| place(fs::metadata(path)) == Some(own))
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.is_there()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(path: &Path) -> Result<Lock, Error> {
        Lock::take(path, "this", &mut |_| {})
    }

    fn left_by(path: &Path, holder: &Holder, age: Duration) {
        fs::write(path, serde_json::to_string(holder).unwrap()).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn one_at_a_time_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let lock = take(&path).unwrap();
        let error = take(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(Lock::holder(&path, &mut |_| {}).unwrap().is_some());
        drop(lock);
        assert!(!path.exists());
        assert_eq!(Lock::holder(&path, &mut |_| {}).unwrap(), None);
        assert!(!path.exists(), "a look does not create it");
        drop(take(&path).unwrap());
    }

    #[test]
    fn a_dead_holder_of_this_machine_is_replaced_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        left_by(&path, &Holder { process: 1, ..Holder::this() }, Duration::ZERO);
        drop(take(&path).unwrap());
        // before the machine was started again
        left_by(&path, &Holder { boot: "earlier".to_owned(), ..Holder::this() }, Duration::ZERO);
        drop(take(&path).unwrap());
    }

    #[test]
    fn a_holder_on_another_machine_is_dead_once_it_was_silent_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let other = Holder { process: 7, host: "elsewhere".to_owned(), boot: "another".to_owned() };
        left_by(&path, &other, 2 * SILENCE);
        drop(take(&path).unwrap());

        left_by(&path, &other, Duration::ZERO);
        let (mut told, touched) = (Vec::new(), path.clone());
        let alive = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(700));
            let mut file = File::options().write(true).open(touched).unwrap();
            file.write_all(b"{").unwrap();
        });
        let error =
            Lock::take(&path, "this", &mut |text| told.push(text.to_owned())).unwrap_err().to_string();
        alive.join().unwrap();
        assert!(error.contains("process 7 on elsewhere"), "{error}");
        assert!(told.len() == 1 && told[0].contains("elsewhere"), "{told:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the clock's file is gone");
    }
}
