//! A folder that appears under its name only when it is complete.

use super::temporary::{self, Left, Temporary, hidden, parent};
use super::{Error, sync};
use crate::host::PathExt;
use crate::host::fs;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What an output replaced, until it is removed.
const ASIDE: &str = ".replaced-esmerge";
/// What the name of a folder ends in that lasts until an output is complete.
const JOURNAL: &str = ".esmerge";
/// Where the output's files lie in a temporary folder; what else lies there is not for the output.
const FILES: &str = "output";
/// What a fresh file system has in its topmost folder.
const NOBODYS: &str = "lost+found";
/// Files that make a folder a model, and so get their names last, in this order.
const LAST: [&str; 3] = [".index.json", "config.json", crate::report::FILE];

/// A temporary folder whose contents get their names by [`finish`](OutputDir::finish); dropped before that, it disappears
/// with everything in it.
#[derive(Debug)]
pub struct OutputDir {
    temporary: Temporary,
    files: PathBuf,
    wanted: PathBuf,
    place: Place,
}

/// How a finished output gets its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing has the name: a folder beside it is renamed.
    New,
    /// An empty folder has it, perhaps a mount point: files are renamed into it, so that it stays what it is.
    Inside,
    /// An earlier output has it: that is put aside, the new one renamed, and the old one removed.
    Replacing,
}

impl OutputDir {
    /// Whether `wanted` can become an output folder: it does not exist, or is an empty folder, or, with `force`, an earlier
    /// output.
    pub fn check(wanted: &Path, force: bool) -> Result<(), Error> {
        place(&followed(wanted), force).map(drop)
    }

    /// Checks `wanted` and creates the temporary folder, which also keeps other runs from writing there.
    pub fn create(wanted: &Path, force: bool) -> Result<OutputDir, Error> {
        let wanted = followed(wanted);
        let beside = restore(&wanted)?;
        let place = place(&wanted, force)?;
        if place == Place::Replacing {
            Temporary::refuse_another_inside(&wanted)?;
        }
        let temporary = match (place, beside) {
            (Place::Inside, _) => Temporary::inside(&wanted)?,
            (_, Some(beside)) => beside,
            (_, None) => Temporary::beside(&wanted)?,
        };
        let files = temporary.path().join(FILES);
        fs::create_dir(&files).map_err(Error::io("create", &files))?;
        Ok(OutputDir { temporary, files, wanted, place })
    }

    /// The same in a folder that other runs may be using too, and that outlives a run which does not finish.
    pub(super) fn in_journal(wanted: &Path, force: bool) -> Result<OutputDir, Error> {
        let wanted = followed(wanted);
        drop(restore(&wanted)?);
        let beside = wanted.with_file_name(temporary::beside(&wanted, JOURNAL));
        let (place, folder) = match place(&wanted, force)? {
            Place::Inside if beside.leads_to_folder() => (Place::New, beside), // begun when there was no such folder
            Place::Inside => (Place::Inside, Temporary::folder_inside(&wanted)),
            place => (place, beside),
        };
        if place == Place::Replacing {
            Temporary::refuse_another_inside(&wanted)?;
        }
        let temporary = Temporary::shared(folder)?;
        let files = temporary.path().join(FILES);
        Ok(OutputDir { temporary, files, wanted, place })
    }

    /// The folder of [`in_journal`](Self::in_journal) of an output that has its name already: what is left of a run that was killed
    /// with nothing else to do than to remove it.
    pub(super) fn outlived(wanted: &Path) -> Option<PathBuf> {
        let wanted = followed(wanted);
        let beside = wanted.with_file_name(temporary::beside(&wanted, JOURNAL));
        let is_complete = wanted.join(crate::report::FILE).is_there();
        let gave_files = |folder: &PathBuf| {
            let files = fs::read_dir(folder.join(FILES));
            folder.leads_to_folder() && files.map_or(true, |mut files| files.next().is_none())
        };
        [beside, Temporary::folder_inside(&wanted)].into_iter().find(gave_files).filter(|_| is_complete)
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        &self.files
    }

    /// The temporary folder, in which there is room for what is not for the output.
    pub fn folder(&self) -> &Path {
        self.temporary.path()
    }

    /// Removes all that was written.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        fs::remove_dir_all(&self.files).map_err(Error::io("remove", &self.files))?;
        fs::create_dir(&self.files).map_err(Error::io("create", &self.files))
    }

    /// Lets the folder outlive a run that does not finish.
    pub(super) fn keep(&self) {
        temporary::keep(self.folder());
    }

    /// The final path.
    pub fn wanted(&self) -> &Path {
        &self.wanted
    }

    /// What a killed run had left of this output.
    pub fn left(&self) -> Option<&Left> {
        self.temporary.left()
    }

    /// An error with the paths that the user knows.
    pub fn name_wanted(&self, error: Error) -> Error {
        match error {
            Error::Io { action, path, source } => match path.strip_prefix(self.path()) {
                Ok(within) => Error::Io { action, path: self.wanted.join(within), source },
                Err(_) => Error::Io { action, path, source },
            },
            other => other,
        }
    }

    /// Gives the folder its name, once everything in it has reached the disk.
    pub fn finish(self) -> Result<(), Error> {
        let OutputDir { temporary, files, wanted, place } = self;
        sync::folder(&files).map_err(Error::io("write", &wanted))?;
        temporary.publish(|_| match place {
            Place::New => rename(&files, &wanted),
            Place::Inside => move_in(&files, &wanted),
            Place::Replacing => replace(&files, &wanted),
        })?;
        let around = if place == Place::Inside { &wanted } else { parent(&wanted) };
        sync::entries(around).map_err(Error::io("write", &wanted))
    }
}

/// A link to a folder stands for that folder; renaming over the link itself would fail.
fn followed(wanted: &Path) -> PathBuf {
    match fs::canonicalize(wanted) {
        Ok(target) if wanted.is_link() => target,
        _ => wanted.to_path_buf(),
    }
}

fn place(wanted: &Path, force: bool) -> Result<Place, Error> {
    let refuse = |reason: &str| Err(Error::Output { path: wanted.to_path_buf(), reason: reason.to_owned() });
    if wanted.leads_to_folder() {
        let (mut names, mut ours) = (Vec::new(), false);
        for entry in fs::read_dir(wanted).map_err(Error::io("list", wanted))? {
            let name = entry.map_err(Error::io("list", wanted))?.file_name();
            let partial = Temporary::is_inside(&name);
            ours |= partial || name == crate::report::FILE;
            if !partial && name != NOBODYS {
                names.push(name);
            }
        }
        return match (names.is_empty(), force) {
            (true, _) => Ok(Place::Inside),
            (false, false) => refuse(
                "the folder is not empty; name a new folder, or empty this one first; --force replaces an earlier output",
            ),
            (false, true) if !ours => refuse(
                "the folder holds something else than an output of esmerge (it has no esmerge-report.json), which --force \
                 does not replace; name a new folder, or empty this one first",
            ),
            (false, true) if is_mount_point(wanted) => refuse(
                "another file system is mounted there, so that the earlier output cannot be replaced as a whole; empty the \
                 folder first",
            ),
            (false, true) => Ok(Place::Replacing),
        };
    }
    if fs::symlink_metadata(wanted).is_ok() {
        return refuse("a file of that name exists; name a new folder");
    }
    if wanted.file_name().is_none() {
        return refuse("the path ends in no folder name; name a new folder");
    }
    match parent(wanted).ancestors().find(|p| p.is_there() && !p.leads_to_folder()) {
        Some(file) => refuse(&format!("{} is a file, not a folder", file.display())),
        None => Ok(Place::New),
    }
}

/// Whether a file system begins at a folder: its device differs from its parent's, or, for a folder of the same one that is
/// mounted there, Linux says so.
#[cfg(unix)]
fn is_mount_point(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(folder) = fs::canonicalize(folder) else { return false };
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let escaped =
        folder.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011");
    folder.parent().is_none_or(|parent| device(parent) != device(&folder))
        || mounts.lines().any(|line| line.split(' ').nth(4) == Some(&escaped))
}

#[cfg(not(unix))]
fn is_mount_point(_folder: &Path) -> bool {
    false
}

fn aside(wanted: &Path) -> PathBuf {
    wanted.with_file_name(hidden(wanted, ASIDE))
}

/// Undoes, or completes, what a run did that was killed while it replaced an earlier output.
fn restore(wanted: &Path) -> Result<Option<Temporary>, Error> {
    let aside = aside(wanted);
    if wanted.file_name().is_none() || !aside.is_there() {
        return Ok(None);
    }
    let alone = Temporary::beside(wanted)?;
    match wanted.is_there() {
        true => fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))?,
        false => rename(&aside, wanted)?,
    }
    Ok(Some(alone))
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(Error::io("rename the finished output to", to))
}

fn replace(folder: &Path, wanted: &Path) -> Result<(), Error> {
    let aside = aside(wanted);
    if let Ok(meta) = fs::metadata(wanted) {
        fs::set_permissions(folder, meta.permissions())
            .map_err(Error::io("set the permissions of", wanted))?;
    }
    fs::rename(wanted, &aside).map_err(Error::io("replace", wanted))?;
    if let Err(error) = rename(folder, wanted) {
        let _ = fs::rename(&aside, wanted);
        return Err(error);
    }
    fs::remove_dir_all(&aside).map_err(Error::io("remove the earlier output", &aside))
}

/// Renames files into an empty folder, one by one: all or, on an error, none.
fn move_in(folder: &Path, wanted: &Path) -> Result<(), Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let name = entry.map_err(Error::io("list", folder))?.file_name();
        if wanted.join(&name).symlink_metadata().is_ok() {
            let reason = format!("something put {} there meanwhile", name.display());
            return Err(Error::Output { path: wanted.to_path_buf(), reason });
        }
        names.push(name);
    }
    names.sort_by_key(|name| (rank(name), name.clone()));
    for (done, name) in names.iter().enumerate() {
        if let Err(error) = rename(&folder.join(name), &wanted.join(name)) {
            for name in &names[..done] {
                let _ = fs::rename(wanted.join(name), folder.join(name));
            }
            return Err(error);
        }
    }
    Ok(())
}

/// 0 for weights and other files.
fn rank(name: &OsStr) -> usize {
    let name = name.to_string_lossy();
    LAST.iter().position(|end| name.ends_with(end)).map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A finished output with one file.
    fn output(wanted: &Path, force: bool, text: &str) -> Result<(), Error> {
        let output = OutputDir::create(wanted, force)?;
        fs::write(output.path().join("model.safetensors"), text).unwrap();
        fs::write(output.path().join(crate::report::FILE), "{}").unwrap();
        output.finish()
    }

    fn place() -> (TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let wanted = place.path().join("out");
        (place, wanted)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[cfg(unix)]
    #[test]
    fn an_empty_folder_stays_the_folder_it_is() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let (place, wanted) = place();
        fs::create_dir_all(wanted.join(NOBODYS)).unwrap();
        fs::set_permissions(&wanted, fs::Permissions::from_mode(0o700)).unwrap();
        let before = fs::metadata(&wanted).unwrap();
        let running = OutputDir::create(&wanted, false).unwrap();
        assert!(running.path().starts_with(&wanted), "on the file system that it names");
        let error = OutputDir::create(&wanted, false).unwrap_err().to_string();
        assert!(error.contains("another run"), "{error}");
        drop(running);
        output(&wanted, false, "new").unwrap();
        let after = fs::metadata(&wanted).unwrap();
        assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
        assert_eq!(names(&wanted), [crate::report::FILE, NOBODYS, "model.safetensors"]);
        assert_eq!(names(place.path()), ["out"]);
    }

    #[test]
    fn only_an_earlier_output_is_replaced_and_only_when_the_new_one_is_complete() {
        let (place, wanted) = place();
        output(&wanted, false, "old").unwrap();
        let refused = output(&wanted, false, "new").unwrap_err().to_string();
        assert!(refused.contains("not empty") && refused.contains("--force"), "{refused}");
        drop(OutputDir::create(&wanted, true).unwrap());
        assert_eq!(fs::read_to_string(wanted.join("model.safetensors")).unwrap(), "old");
        output(&wanted, true, "new").unwrap();
        assert_eq!(fs::read_to_string(wanted.join("model.safetensors")).unwrap(), "new");
        assert_eq!(names(place.path()), ["out"]);

        fs::remove_file(wanted.join(crate::report::FILE)).unwrap();
        let refused = output(&wanted, true, "third").unwrap_err().to_string();
        assert!(refused.contains("something else") && refused.contains("out"), "{refused}");
    }

    #[test]
    fn an_output_put_aside_by_a_killed_run_comes_back() {
        let (place, wanted) = place();
        output(&wanted, false, "old").unwrap();
        fs::rename(&wanted, aside(&wanted)).unwrap();
        drop(OutputDir::create(&wanted, true).unwrap());
        assert_eq!(fs::read_to_string(wanted.join("model.safetensors")).unwrap(), "old");
        assert_eq!(names(place.path()), ["out"]);
    }

    #[test]
    fn what_is_put_into_an_empty_folder_meanwhile_is_not_overwritten() {
        let (_place, wanted) = place();
        fs::create_dir(&wanted).unwrap();
        let running = OutputDir::create(&wanted, false).unwrap();
        for folder in [running.path(), &wanted] {
            fs::write(folder.join("config.json"), folder.display().to_string()).unwrap();
        }
        let error = running.finish().unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("meanwhile"), "{error}");
        assert_eq!(names(&wanted), ["config.json"]);
        assert_eq!(fs::read_to_string(wanted.join("config.json")).unwrap(), wanted.display().to_string());
    }

    #[test]
    fn the_files_that_make_a_folder_a_model_come_last() {
        let mut names = [crate::report::FILE, "config.json", "model.safetensors.index.json", "a.safetensors"];
        names.sort_by_key(|name| rank(name.as_ref()));
        let last = ["a.safetensors", "model.safetensors.index.json", "config.json", crate::report::FILE];
        assert_eq!(names, last);
    }

    #[test]
    fn errors_name_the_folder_that_was_asked_for() {
        let (_place, wanted) = place();
        let output = OutputDir::create(&wanted, false).unwrap();
        let full = Error::io("write", &output.path().join("x/y"))(std::io::Error::other("full"));
        let text = output.name_wanted(full).to_string();
        assert_eq!(text, format!("cannot write {}: full", wanted.join("x/y").display()));
    }
}
