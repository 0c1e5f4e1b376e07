//! What a run has done, kept beside its output until that is complete, so that a later run goes on from there, or several runs
//! do a share each.
//!
//! The folder `<out>.esmerge` holds
//! - `plan.json`, the [`Identity`] of the work: what all its results depend on;
//! - for every writer (`1-of-1`, or one of several shares) a list of finished units and a file of their values;
//! - `output`, the files of the model that are finished, and the one being written;
//! - locks, one a writer.

mod identity;
mod lock;
mod log;
mod parts;

pub use identity::{FORMAT, Identity, InputFile, files_in};
pub use log::Place;
pub use parts::Parts;

use super::{Error, Extent, Left, OutputDir, sync, temporary};
use crate::host::PathExt;
use crate::host::fs;
use lock::Lock;
use log::{Done, Line, Log, Stretch};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The name of the file with the work's identity.
const PLAN: &str = "plan.json";

/// Whether a folder has work in it that a later run can go on with.
pub fn is_in(folder: &Path) -> bool {
    folder.join(PLAN).leads_to_file()
}

/// What to do with the work of an earlier run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Earlier {
    /// Go on with it, if there is any.
    #[default]
    Use,
    /// Go on with it; it is an error if there is none.
    Insist,
    /// Begin again.
    Discard,
}

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The name of its files: `3-of-8`.
    pub name: String,
    /// Whether nobody else may be at work on the same output.
    pub alone: bool,
    /// How much work a kill may cost: what is done is made to last so often.
    pub every: Duration,
}

/// [`Writer::every`], unless it is told otherwise.
const EVERY: Duration = Duration::from_secs(1);

impl Writer {
    /// The only one.
    pub fn only() -> Writer {
        Writer { name: "1-of-1".to_owned(), alone: true, every: EVERY }
    }

    /// One of several.
    pub fn share(index: impl std::fmt::Display, count: usize) -> Writer {
        Writer { name: format!("{index}-of-{count}"), alone: false, every: EVERY }
    }

    /// Who puts together what several have done.
    pub fn join() -> Writer {
        Writer { name: "join".to_owned(), alone: true, every: EVERY }
    }
}

/// An output, and the journal of the work on it.
#[derive(Debug)]
pub struct Journal {
    output: OutputDir,
    writer: Writer,
    before: Option<Identity>,
    left: Option<Left>,
    lock: Lock,
}

impl Journal {
    /// Takes the place of an output, and what an earlier run has left there. `waiting` is told why it takes a while.
    pub fn open(
        wanted: &Path,
        force: bool,
        writer: Writer,
        earlier: Earlier,
        waiting: &mut dyn FnMut(&str),
    ) -> Result<Journal, Error> {
        let output = OutputDir::in_journal(wanted, force)?;
        let folder = output.folder().to_path_buf();
        let refuse = |reason: String| Error::Journal { path: folder.clone(), reason };
        let own = folder.join(format!("{}{}", writer.name, lock::ENDING));
        let lock = Lock::take(&own, &wanted.display().to_string(), waiting)?;
        if writer.alone {
            others_rest(&folder, &own, wanted, waiting)?;
        }
        if earlier == Earlier::Discard {
            if !writer.alone {
                return Err(refuse(
                    "it holds the work of the other shares too; remove the folder to begin again".into(),
                ));
            }
            discard(&folder, &own)?;
        }
        let (before, mut left) = (read_plan(&folder.join(PLAN))?, None);
        if before.is_some() || !writer.alone {
            output.keep();
        } else {
            let bytes = temporary::bytes_in(&folder) - fs::metadata(&own).map_or(0, |meta| meta.len());
            left = (bytes > 0).then(|| Left { path: folder.clone(), bytes });
            discard(&folder, &own)?; // what was never told of
        }
        if earlier == Earlier::Insist && before.is_none() {
            let reason = "no earlier run has left work there to go on with; begin with `esmerge merge`, without --resume";
            return Err(refuse(reason.to_owned()));
        }
        fs::create_dir_all(output.path()).map_err(Error::io("create", output.path()))?;
        Ok(Journal { output, writer, before, left, lock })
    }

    /// Removes the journal of an output that is complete, which a run has left that was killed in between; whether there was one.
    pub fn tidied(wanted: &Path, waiting: &mut dyn FnMut(&str)) -> Result<bool, Error> {
        let outlived = || OutputDir::outlived(wanted).filter(|folder| folder.join(PLAN).is_there());
        let Some(folder) = outlived() else { return Ok(false) };
        let own = folder.join(format!("{}{}", Writer::join().name, lock::ENDING));
        let lock = Lock::take(&own, &wanted.display().to_string(), waiting)?;
        others_rest(&folder, &own, wanted, waiting)?;
        let is_left = outlived().is_some(); // it may have been another run's, which has ended now
        if is_left {
            fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
        }
        drop(lock);
        Ok(is_left)
    }

    /// The work that an earlier run has begun.
    pub fn before(&self) -> Option<&Identity> {
        self.before.as_ref()
    }

    /// What a killed run had left that was of no use.
    pub fn left(&self) -> Option<&Left> {
        self.left.as_ref()
    }

    /// Where the output is written.
    pub fn output(&self) -> &OutputDir {
        &self.output
    }

    /// Begins, or goes on, with the work of an identity; refuses another's. Gives the identity of whoever began, whose units are
    /// the work's.
    pub fn begin(&self, identity: Identity) -> Result<(Ledger, Identity), Error> {
        let folder = self.output.folder();
        let plan = serde_json::to_vec_pretty(&identity);
        let plan = plan.map_err(|e| Error::io("write", &folder.join(PLAN))(e.into()))?;
        let mut unwritten = None;
        let mut first = match &self.before {
            Some(before) => Some(before.clone()),
            None => read_plan(&folder.join(PLAN))?, // of this run, which begins once more, or of one that came before it
        };
        if first.is_none() && self.writer.alone {
            unwritten = Some(plan); // once there is something to keep
        } else if first.is_none() {
            create_plan(folder, &self.writer.name, &plan)?;
            first = read_plan(&folder.join(PLAN))?;
        }
        if let Some(first) = &first {
            self.compare(&identity, first)?;
        }
        Ok((Ledger::open(folder, &self.writer, unwritten)?, first.unwrap_or(identity)))
    }

    fn compare(&self, now: &Identity, before: &Identity) -> Result<(), Error> {
        let changes = now.changes(before);
        if changes.is_empty() {
            return Ok(());
        }
        Err(refusal(self.output.folder(), &changes))
    }

    /// Gives the output its name, and removes the journal.
    pub fn finish(self) -> Result<(), Error> {
        let Journal { output, lock, .. } = self;
        output.finish()?;
        drop(lock);
        Ok(())
    }

    /// Ends a share: the journal stays.
    pub fn rest(self) {
        self.output.keep();
    }
}

/// What is said of work that cannot be used, because of these changes.
fn refusal(folder: &Path, changes: &[String]) -> Error {
    let shown: Vec<&str> = changes.iter().map(String::as_str).take(3).collect();
    let more = changes.len() - shown.len();
    let more = if more > 0 { format!("; and {more} more changes") } else { String::new() };
    let reason = format!(
        "an earlier run has left work there that this one cannot use: {}{more}; undo that to go on, or begin again with --fresh",
        shown.join("; ")
    );
    Error::Journal { path: folder.to_path_buf(), reason }
}

/// Refuses while another writer is at work in a folder.
fn others_rest(folder: &Path, own: &Path, wanted: &Path, waiting: &mut dyn FnMut(&str)) -> Result<(), Error> {
    for path in entries(folder)? {
        if path == own || !path.to_string_lossy().ends_with(lock::ENDING) {
            continue;
        }
        if let Some(holder) = Lock::holder(&path, waiting)? {
            let reason = format!("{holder} is at work on {}; wait for it", wanted.display());
            return Err(Error::Journal { path: folder.to_path_buf(), reason });
        }
    }
    Ok(())
}

/// Empties a folder, but for this run's lock. The plan goes first: without it nothing else counts.
fn discard(folder: &Path, own: &Path) -> Result<(), Error> {
    let plan = folder.join(PLAN);
    match fs::remove_file(&plan) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &plan)(e)),
        _ => {}
    }
    for path in entries(folder)?.into_iter().filter(|path| path != own) {
        let removed = if path.leads_to_folder() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &path)(e)),
            _ => {}
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::io("list", folder))?;
    entries.map(|entry| entry.map(|e| e.path()).map_err(Error::io("list", folder))).collect()
}

fn read_plan(path: &Path) -> Result<Option<Identity>, Error> {
    let bytes = match crate::files::read(path, crate::files::TOKENIZER) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let damaged = |e: serde_json::Error| {
        let reason = format!("it cannot be read as the plan of a journal ({e}); begin again with --fresh");
        Error::Journal { path: path.to_path_buf(), reason }
    };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// Writes the plan where there is none: it appears whole, and the first of several writers wins.
fn create_plan(folder: &Path, writer: &str, plan: &[u8]) -> Result<(), Error> {
    create(&folder.join(PLAN), writer, plan)
}

/// Writes a file where there is none; it appears whole.
fn create(path: &Path, writer: &str, text: &[u8]) -> Result<(), Error> {
    let folder = super::parent(path);
    let part = folder.join(format!("{writer}.part"));
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&part)?;
        file.write_all(text)?;
        file.sync_all()?;
        match fs::hard_link(&part, path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(_) if !path.is_there() => fs::rename(&part, path)?, // a file system without links
            _ => {}
        }
        let _ = fs::remove_file(&part);
        sync::entries(folder)
    };
    write().map_err(Error::io("write", path))
}

/// The finished units of work, and a place for the values of the next. Clones are the same ledger.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    writer: Writer,
    /// Whether units are listed, so that they outlive the run.
    listed: bool,
    done: HashMap<String, Done>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    log: Option<Log>,
    /// To be written before the first unit is listed.
    plan: Option<Vec<u8>>,
}

/// What is known of values that were written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Where.
    pub place: Place,
    /// How many bytes.
    pub bytes: u64,
    /// Their CRC-32.
    pub crc32: u32,
}

impl Ledger {
    /// A ledger that nobody reads again: a place for values only.
    pub fn forgetful(folder: &Path) -> Ledger {
        let writer = Writer { name: "scratch".to_owned(), ..Writer::only() };
        Ledger::new(folder, &writer, false, HashMap::new(), State::default())
    }

    /// What all writers have done; a plan that is not written yet is before the first unit is listed.
    fn open(folder: &Path, writer: &Writer, plan: Option<Vec<u8>>) -> Result<Ledger, Error> {
        let mut done = HashMap::new();
        for other in log::writers(folder)?.iter().filter(|other| **other != writer.name) {
            done.extend(Log::read(folder, other)?);
        }
        let mut state = State { log: None, plan };
        if state.plan.is_none() {
            let (log, own) = Log::open(folder, &writer.name, writer.every)?;
            state.log = Some(log);
            done.extend(own);
        }
        Ok(Ledger::new(folder, writer, true, done, state))
    }

    fn new(
        folder: &Path,
        writer: &Writer,
        listed: bool,
        done: HashMap<String, Done>,
        state: State,
    ) -> Ledger {
        let (folder, writer, state) = (folder.to_path_buf(), writer.clone(), Mutex::new(state));
        Ledger(Arc::new(Inner { folder, writer, listed, done, state }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether units outlive the run.
    pub fn is_listed(&self) -> bool {
        self.0.listed
    }

    /// What was said of a unit that was done before, and its values.
    pub fn done<T: DeserializeOwned>(&self, unit: &str) -> Option<(T, Option<Extent>)> {
        let done = self.0.done.get(unit)?;
        Some((serde_json::from_value(done.said.clone()).ok()?, done.values.clone()))
    }

    /// Whether a unit was done before.
    pub fn has(&self, unit: &str) -> bool {
        self.0.done.contains_key(unit)
    }

    /// The names of all who have written.
    pub fn writers(&self) -> Result<Vec<String>, Error> {
        log::writers(&self.0.folder)
    }

    /// Units done before whose names begin so.
    pub fn count(&self, prefix: &str) -> usize {
        self.0.done.keys().filter(|unit| unit.starts_with(prefix)).count()
    }

    /// What is said of a unit, as it is kept.
    pub fn words(&self, said: &impl Serialize) -> Result<Value, Error> {
        serde_json::to_value(said).map_err(|e| Error::io("write", &self.0.folder)(e.into()))
    }

    /// A place for values.
    pub fn reserve(&self, bytes: u64) -> Result<Place, Error> {
        Ok(self.log(&mut self.state())?.reserve(bytes))
    }

    /// Notes that a unit is done. It lasts within a second or so, and from [`sync`](Ledger::sync) on.
    pub fn note(&self, unit: &str, values: Option<&Written>, said: &impl Serialize) -> Result<(), Error> {
        if !self.0.listed {
            return Ok(());
        }
        let said = self.words(said)?;
        let stretch = |w: &Written| Stretch { first: w.place.first(), bytes: w.bytes, crc32: w.crc32 };
        let line = Line { unit: unit.to_owned(), values: values.map(stretch), said };
        let mut state = self.state();
        match self.log(&mut state)?.note(&line)? {
            true => self.sync_state(&mut state),
            false => Ok(()),
        }
    }

    /// Makes everything noted last.
    pub fn sync(&self) -> Result<(), Error> {
        if !self.0.listed {
            return Ok(());
        }
        self.sync_state(&mut self.state())
    }

    /// Makes everything noted last, unless so little was done that it is not worth a journal.
    pub fn sync_if_due(&self) -> Result<(), Error> {
        if !self.0.listed {
            return Ok(());
        }
        let mut state = self.state();
        match state.plan.is_none() || self.log(&mut state)?.is_due() {
            true => self.sync_state(&mut state),
            false => Ok(()),
        }
    }

    fn sync_state(&self, state: &mut State) -> Result<(), Error> {
        if let Some(plan) = state.plan.take() {
            create_plan(&self.0.folder, &self.0.writer.name, &plan)?;
            super::keep(&self.0.folder);
        }
        self.log(state)?.sync()
    }

    /// The log, whose files come into being when there is something to put into them.
    fn log<'s>(&self, state: &'s mut State) -> Result<&'s mut Log, Error> {
        match state.log {
            Some(ref mut log) => Ok(log),
            None => {
                let (log, _) = Log::open(&self.0.folder, &self.0.writer.name, self.0.writer.every)?;
                Ok(state.log.insert(log))
            }
        }
    }

    /// Notes that a file of the output is finished.
    pub fn note_file(&self, name: &str, written: FileWritten, said: &impl Serialize) -> Result<(), Error> {
        if !self.0.listed {
            return Ok(());
        }
        let said = self.words(said)?;
        self.note(&file_unit(name), None, &(written.bytes, written.crc32, said))?;
        self.sync_if_due()
    }

    /// Whether a file of the output was finished before.
    pub fn has_file(&self, name: &str) -> bool {
        self.0.done.contains_key(&file_unit(name))
    }

    /// What was said of a file of the output that is finished and still what it was.
    pub fn finished_file<T: DeserializeOwned>(&self, output: &Path, name: &str) -> Option<T> {
        let ((bytes, crc32, said), _) = self.done::<(u64, u32, Value)>(&file_unit(name))?;
        let intact = log::of_file(&output.join(name)).is_ok_and(|found| found == (crc32, bytes));
        intact.then(|| serde_json::from_value(said).ok()).flatten()
    }
}

/// What tells whether a file is still the one that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileWritten {
    /// Its length.
    pub bytes: u64,
    /// Its CRC-32.
    pub crc32: u32,
}

fn file_unit(name: &str) -> String {
    format!("file/{name}")
}
