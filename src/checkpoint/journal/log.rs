//! A list of what is done, and the values of that: one file grows by a line for every unit of work, another by its values.
//!
//! Values reach the disk before the line that tells of them, and a line that was cut off, or whose checksum does not fit, ends
//! the list: so whatever it names is there in full.

use super::super::extent::{Source, write_all_at};
use super::super::{Error, Extent};
use crate::host::Instant;
use crate::host::fs::{self, File};
use crc32fast::Hasher;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What the names of the two files end in.
pub(super) const LIST: &str = ".list";
pub(super) const VALUES: &str = ".values";
/// What was done is made to last once it has this many bytes, however soon that is.
const SYNC_BYTES: u64 = 256 << 20;
/// Bytes of a line, past which it is none.
const LONGEST_LINE: u64 = 64 << 20;
/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// What is said of a unit of work that is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Line {
    /// Which.
    pub unit: String,
    /// Where its values are, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Stretch>,
    /// All else.
    pub said: Value,
}

/// Values in the other file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stretch {
    pub first: u64,
    pub bytes: u64,
    pub crc32: u32,
}

/// A finished unit, as it was found.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub said: Value,
    pub values: Option<Extent>,
}

/// Both files, open to grow.
#[derive(Debug)]
pub(super) struct Log {
    list: File,
    path: PathBuf,
    values: Arc<Source>,
    end: u64,
    /// Lines of units whose values may not have reached the disk.
    waiting: String,
    waiting_bytes: u64,
    synced: Instant,
    /// Work that a kill may cost.
    every: Duration,
}

impl Log {
    /// Opens the files of a writer, or creates them, and forgets what is not complete. Gives the finished units.
    pub fn open(folder: &Path, writer: &str, every: Duration) -> Result<(Log, Vec<(String, Done)>), Error> {
        let path = folder.join(format!("{writer}{LIST}"));
        let options = || {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options
        };
        // first, so that whoever finds the list finds its values too
        let of_values = folder.join(format!("{writer}{VALUES}"));
        let file = options().open(&of_values).map_err(Error::io("open", &of_values))?;
        let mut list = options().open(&path).map_err(Error::io("open", &path))?;
        let length = file.metadata().map_err(Error::io("read", &of_values))?.len();
        let values = Arc::new(Source::own(of_values.clone(), file));
        let (lines, valid) = lines(&mut list).map_err(Error::io("read", &path))?;
        let done = check(lines, &values, length)?;
        let end =
            done.iter().filter_map(|(line, _)| line.values).map(|s| s.first + s.bytes).max().unwrap_or(0);
        // what follows was never told of
        list.set_len(valid).map_err(Error::io("write", &path))?;
        values.file().map_or(Ok(()), |file| file.set_len(end)).map_err(Error::io("write", &of_values))?;
        let log = Log {
            list,
            path,
            values,
            end,
            waiting: String::new(),
            waiting_bytes: 0,
            synced: Instant::now(),
            every,
        };
        Ok((log, done.into_iter().map(|(line, done)| (line.unit, done)).collect()))
    }

    /// The finished units of another writer, who may be at work.
    pub fn read(folder: &Path, writer: &str) -> Result<Vec<(String, Done)>, Error> {
        let path = folder.join(format!("{writer}{LIST}"));
        let mut list = File::open(&path).map_err(Error::io("open", &path))?;
        let (lines, _) = lines(&mut list).map_err(Error::io("read", &path))?;
        let of_values = folder.join(format!("{writer}{VALUES}"));
        let file = File::open(&of_values).map_err(Error::io("open", &of_values))?;
        let length = file.metadata().map_err(Error::io("read", &of_values))?.len();
        let done = check(lines, &Arc::new(Source::own(of_values, file)), length)?;
        Ok(done.into_iter().map(|(line, done)| (line.unit, done)).collect())
    }

    /// Room for values at the end.
    pub fn reserve(&mut self, bytes: u64) -> Place {
        let first = self.end;
        self.end += bytes;
        Place { source: Arc::clone(&self.values), first }
    }

    /// Notes that a unit is done, whose values were written. It lasts from the next [`sync`](Log::sync) on, which is due when
    /// this gives `true`.
    pub fn note(&mut self, line: &Line) -> Result<bool, Error> {
        let json = serde_json::to_string(line).map_err(|e| Error::io("write", &self.path)(e.into()))?;
        self.waiting.push_str(&format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())));
        self.waiting_bytes += line.values.map_or(0, |s| s.bytes);
        Ok(self.is_due())
    }

    /// Whether enough has been done for it to be made to last.
    pub fn is_due(&self) -> bool {
        self.synced.elapsed() >= self.every || self.waiting_bytes >= SYNC_BYTES
    }

    /// Makes everything noted last.
    pub fn sync(&mut self) -> Result<(), Error> {
        if !self.waiting.is_empty() {
            if self.waiting_bytes > 0 {
                let synced = self.values.file().map_or(Ok(()), File::sync_data);
                synced.map_err(Error::io("write", self.values.path()))?;
            }
            let written = append(&mut self.list, self.waiting.as_bytes());
            written.map_err(Error::io("write", &self.path))?;
            self.waiting.clear();
            self.waiting_bytes = 0;
        }
        self.synced = Instant::now();
        Ok(())
    }
}

fn append(list: &mut File, text: &[u8]) -> std::io::Result<()> {
    std::io::Seek::seek(list, std::io::SeekFrom::End(0))?;
    list.write_all(text)?;
    list.sync_data()
}

/// Where values go, for another thread.
#[derive(Clone, Debug)]
pub struct Place {
    source: Arc<Source>,
    first: u64,
}

impl Place {
    /// Writes values, `skip` bytes behind the beginning.
    pub fn write(&self, bytes: &[u8], skip: u64) -> Result<(), Error> {
        let written = self.source.file().map_or(Ok(()), |file| write_all_at(file, bytes, self.first + skip));
        written.map_err(Error::io("write", self.source.path()))
    }

    /// The bytes from `skip` on.
    pub fn extent(&self, skip: u64, bytes: usize) -> Extent {
        Extent::new(&self.source, self.first + skip, bytes)
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }
}

/// The lines up to the first that is not whole, and how many bytes they are.
fn lines(list: &mut File) -> std::io::Result<(Vec<Line>, u64)> {
    let (mut found, mut valid, mut text) = (Vec::new(), 0, Vec::new());
    let mut list = BufReader::new(list);
    loop {
        text.clear();
        let read = list.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut text)?;
        let Some(line) = parse(&text) else { return Ok((found, valid)) };
        found.push(line);
        valid += read as u64;
    }
}

fn parse(line: &[u8]) -> Option<Line> {
    let (crc, json) = std::str::from_utf8(line).ok()?.strip_suffix('\n')?.split_once(' ')?;
    let intact = crc.len() == 8 && u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(json.as_bytes());
    intact.then(|| serde_json::from_str(json).ok()).flatten()
}

/// The units whose values are what they were when they were noted.
fn check(lines: Vec<Line>, values: &Arc<Source>, length: u64) -> Result<Vec<(Line, Done)>, Error> {
    let mut done = Vec::new();
    for line in lines {
        let extent = match line.values {
            Some(stretch) if !is_intact(stretch, values, length)? => continue,
            stretch => stretch.map(|s| Extent::new(values, s.first, s.bytes as usize)),
        };
        let said = line.said.clone();
        done.push((line, Done { said, values: extent }));
    }
    Ok(done)
}

fn is_intact(stretch: Stretch, values: &Source, length: u64) -> Result<bool, Error> {
    let Some(end) = stretch.first.checked_add(stretch.bytes).filter(|end| *end <= length) else {
        return Ok(false);
    };
    let (mut hash, mut buffer) = (Hasher::new(), vec![0; CHUNK.min(stretch.bytes as usize)]);
    let mut at = stretch.first;
    while at < end {
        let piece = &mut buffer[..CHUNK.min((end - at) as usize)];
        values.read(piece, at)?;
        hash.update(piece);
        at += piece.len() as u64;
    }
    Ok(hash.finalize() == stretch.crc32)
}

/// The CRC-32 of a file, and its length.
pub(super) fn of_file(path: &Path) -> std::io::Result<(u32, u64)> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer, mut length) = (Hasher::new(), vec![0; CHUNK], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hash.finalize(), length)),
            n => {
                hash.update(&buffer[..n]);
                length += n as u64;
            }
        }
    }
}

/// The writers whose lists are in a folder.
pub(super) fn writers(folder: &Path) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let name = entry.map_err(Error::io("list", folder))?.file_name();
        found.extend(name.to_string_lossy().strip_suffix(LIST).map(str::to_owned));
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::ZERO;

    fn add(log: &mut Log, unit: &str, values: &[u8]) {
        let place = log.reserve(values.len() as u64);
        place.write(values, 0).unwrap();
        let stretch =
            Stretch { first: place.first(), bytes: values.len() as u64, crc32: crc32fast::hash(values) };
        log.note(&Line { unit: unit.to_owned(), values: Some(stretch), said: Value::from(0.1) }).unwrap();
        log.sync().unwrap();
    }

    fn units(done: &[(String, Done)]) -> Vec<(&str, Vec<u8>)> {
        done.iter()
            .map(|(unit, done)| (unit.as_str(), done.values.as_ref().unwrap().read().unwrap()))
            .collect()
    }

    #[test]
    fn what_was_noted_is_found_again_and_the_next_follows() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, done) = Log::open(folder.path(), "1-of-1", EVERY).unwrap();
        assert!(done.is_empty());
        add(&mut log, "a", b"first");
        drop(log.reserve(100)); // never finished
        drop(log);
        let (mut log, done) = Log::open(folder.path(), "1-of-1", EVERY).unwrap();
        assert_eq!(units(&done), [("a", b"first".to_vec())]);
        add(&mut log, "b", b"second");
        drop(log);
        let done = Log::read(folder.path(), "1-of-1").unwrap();
        assert_eq!(units(&done), [("a", b"first".to_vec()), ("b", b"second".to_vec())]);
        assert_eq!(writers(folder.path()).unwrap(), ["1-of-1"]);
        assert_eq!(done[0].1.said, 0.1);
    }

    #[test]
    fn a_list_cut_anywhere_names_only_what_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(folder.path(), "w", EVERY).unwrap();
        ["a", "b", "c"].iter().for_each(|unit| add(&mut log, unit, unit.repeat(9).as_bytes()));
        drop(log);
        let list = fs::read(folder.path().join("w.list")).unwrap();
        let ends: Vec<usize> =
            list.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
        for cut in 0..=list.len() {
            fs::write(folder.path().join("w.list"), &list[..cut]).unwrap();
            let done = Log::read(folder.path(), "w").unwrap();
            assert_eq!(done.len(), ends.iter().filter(|end| **end <= cut).count(), "cut at {cut}");
        }
    }

    #[test]
    fn any_changed_byte_costs_what_it_belongs_to_and_nothing_else_goes_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(folder.path(), "w", EVERY).unwrap();
        ["a", "b", "c"].iter().for_each(|unit| add(&mut log, unit, unit.repeat(9).as_bytes()));
        drop(log);
        for name in ["w.list", "w.values"] {
            let path = folder.path().join(name);
            let whole = fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut changed = whole.clone();
                changed[at] ^= 0x41;
                fs::write(&path, &changed).unwrap();
                let done = Log::read(folder.path(), "w").unwrap();
                assert!(done.len() < 3, "byte {at} of {name}");
                let told = |(unit, values): &(&str, Vec<u8>)| *values == unit.repeat(9).into_bytes();
                assert!(units(&done).iter().all(told));
            }
            fs::write(&path, &whole).unwrap();
        }
    }
}
