//! What a run's work depends on: a later run goes on with it only where nothing of that has changed.

use super::super::Error;
use super::super::fingerprint::hexadecimal;
use crate::host::PathExt;
use crate::host::fs::{self, File};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The value of `format`.
pub const FORMAT: &str = "esmerge-journal-1";
/// Bytes at the beginning of a file that are always hashed: the header of most.
const START: u64 = 1 << 20;

/// What must be the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// [`FORMAT`]
    pub format: String,
    /// The program's version.
    pub version: String,
    /// The recipe, verbatim.
    pub recipe: String,
    /// Where it lies, in full.
    pub recipe_path: PathBuf,
    /// Flags that change the result, by name; those that are not given are not here.
    pub flags: BTreeMap<String, String>,
    /// The kind of device, as far as its results depend on it.
    pub device: String,
    /// Everything that is read, by its path in full.
    pub inputs: BTreeMap<PathBuf, InputFile>,
    /// What is merged at once: the layers of every unit of work. Who begins decides on that; all others take it as it is.
    pub units: Vec<Vec<String>>,
}

/// What tells a file from itself after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Its length.
    pub bytes: u64,
    /// Nanoseconds from 1970 to its last change.
    pub modified: u128,
    /// SHA-256 of its first MiB.
    pub start_sha256: String,
    /// SHA-256 of all of it, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl InputFile {
    /// Looks at a file; with `verify`, at all of it.
    pub fn of(path: &Path, verify: bool) -> Result<InputFile, Error> {
        let read = || Error::io("read", path);
        let mut file = crate::files::open(path).map_err(Error::io("open", path))?;
        let meta = file.metadata().map_err(read())?;
        let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let mut hash = Sha256::new();
        hash_some(&mut file, &mut hash, START).map_err(read())?;
        let start_sha256 = hexadecimal(&hash.clone().finalize());
        let sha256 = match verify {
            true => {
                hash_some(&mut file, &mut hash, u64::MAX).map_err(read())?;
                Some(hexadecimal(&hash.finalize()))
            }
            false => None,
        };
        let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        Ok(InputFile { bytes: meta.len(), modified, start_sha256, sha256 })
    }

    /// How this file differs from what it was.
    fn differs(&self, before: &InputFile) -> Option<&'static str> {
        let same_contents = self.sha256.is_some() && self.sha256 == before.sha256;
        if same_contents {
            None
        } else if self.bytes != before.bytes {
            Some("has another size")
        } else if self.start_sha256 != before.start_sha256 {
            Some("begins with something else")
        } else if self.sha256.is_some() && before.sha256.is_some() {
            Some("holds something else")
        } else if self.modified != before.modified {
            Some("was written again")
        } else {
            None
        }
    }
}

fn hash_some(file: &mut File, hash: &mut Sha256, limit: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut some = file.take(limit);
    loop {
        match some.read(&mut buffer)? {
            0 => return Ok(()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// The files in a folder and in those in it, but for hidden ones; a file alone is itself.
pub fn files_in(path: &Path) -> Result<Vec<PathBuf>, Error> {
    fn add(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), Error> {
        if path.leads_to_file() {
            files.push(path.to_path_buf());
        }
        if !path.leads_to_folder() || depth == 0 {
            return Ok(());
        }
        for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
            let entry = entry.map_err(Error::io("list", path))?;
            if !entry.file_name().to_string_lossy().starts_with('.') {
                add(&entry.path(), depth - 1, files)?;
            }
        }
        Ok(())
    }
    let mut files = Vec::new();
    add(path, 4, &mut files)?;
    Ok(files)
}

impl Identity {
    /// What is no longer what it was, as a sentence each.
    pub fn changes(&self, before: &Identity) -> Vec<String> {
        let mut changes = Vec::new();
        let mut differs = |what: &str, now: &str, before: &str| {
            if now != before {
                changes.push(format!("{what} {now}, and was {before}"));
            }
        };
        differs("the format of journals is", &self.format, &before.format);
        differs("the version of esmerge is", &self.version, &before.version);
        differs("the device is", &self.device, &before.device);
        if self.recipe != before.recipe {
            changes.push(format!("the recipe {} has changed", self.recipe_path.display()));
        }
        let flags: BTreeSet<&String> = self.flags.keys().chain(before.flags.keys()).collect();
        for flag in flags {
            let (now, was) = (self.flags.get(flag), before.flags.get(flag));
            if now != was {
                let words = |value: Option<&String>| value.map_or("not given", String::as_str).to_owned();
                changes.push(format!("{flag} is {}, and was {}", words(now), words(was)));
            }
        }
        for (path, was) in &before.inputs {
            match self.inputs.get(path) {
                None => changes.push(format!("{} is not read any more", path.display())),
                Some(now) => changes.extend(now.differs(was).map(|how| format!("{} {how}", path.display()))),
            }
        }
        let new = self.inputs.keys().filter(|path| !before.inputs.contains_key(*path));
        changes.extend(new.map(|path| format!("{} was not read before", path.display())));
        let layers =
            |identity: &Identity| -> BTreeSet<String> { identity.units.iter().flatten().cloned().collect() };
        if changes.is_empty() && layers(self) != layers(before) {
            changes.push("other layers are to be merged".to_owned());
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(file: &Path, verify: bool) -> Identity {
        Identity {
            format: FORMAT.to_owned(),
            version: "1".to_owned(),
            recipe: "r".to_owned(),
            recipe_path: PathBuf::from("r.yaml"),
            flags: BTreeMap::new(),
            device: "CPU".to_owned(),
            inputs: BTreeMap::from([(file.to_path_buf(), InputFile::of(file, verify).unwrap())]),
            units: vec![vec!["a".to_owned()]],
        }
    }

    #[test]
    fn every_change_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        fs::write(&path, b"0123").unwrap();
        let before = identity(&path, false);
        assert_eq!(identity(&path, false).changes(&before), Vec::<String>::new());
        let change = |change: fn(&mut Identity)| {
            let mut now = before.clone();
            change(&mut now);
            now.changes(&before)
        };
        type Change = fn(&mut Identity);
        let cases: [(Change, &str); 7] = [
            (|i| i.version = "2".to_owned(), "the version of esmerge is 2, and was 1"),
            (|i| i.device = "GPU".to_owned(), "the device is GPU, and was CPU"),
            (|i| i.recipe = "s".to_owned(), "the recipe r.yaml has changed"),
            (|i| drop(i.flags.insert("--seed".to_owned(), "3".to_owned())), "--seed is 3, and was not given"),
            (|i| i.inputs.clear(), "is not read any more"),
            (|i| drop(i.units.pop()), "other layers are to be merged"),
            (|i| i.inputs.values_mut().for_each(|f| f.modified += 1), "was written again"),
        ];
        for (how, expected) in cases {
            let changes = change(how);
            assert!(changes.len() == 1 && changes[0].contains(expected), "{changes:?}: {expected}");
        }
    }

    #[test]
    fn the_same_contents_written_again_are_the_same_where_all_of_them_are_hashed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        let large = vec![7; START as usize + 9];
        fs::write(&path, &large).unwrap();
        let (before, hashed) = (identity(&path, false), identity(&path, true));
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() + std::time::Duration::from_secs(9)).unwrap();
        assert_eq!(identity(&path, false).changes(&before).len(), 1);
        assert_eq!(identity(&path, true).changes(&hashed).len(), 0);
        let mut changed = large.clone();
        changed[START as usize + 3] = 8;
        fs::write(&path, &changed).unwrap();
        let changes = identity(&path, true).changes(&hashed);
        assert!(changes.len() == 1 && changes[0].contains("holds something else"), "{changes:?}");
    }
}
