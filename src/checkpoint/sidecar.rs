//! The files beside the weights that make a folder a model: configuration, tokenizer, preprocessor, terms of use. They are
//! listed and looked at before a merge begins, and copied when it has ended.

use super::sidecar_names::{belongs, is_weights};
use super::{Error, settings};
use crate::backend::Dtype;
use crate::files;
use crate::host::PathExt;
use crate::host::fs::{self, File};
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};

/// The file in which sentence-transformers lists the modules of a model, most of them folders.
const MODULES: &str = "modules.json";
/// The configuration, which tells the type of the weights.
const CONFIG: &str = "config.json";

/// The files that an output takes from its base.
#[derive(Clone, Debug, Default)]
pub struct Sidecars {
    folder: PathBuf,
    /// Names relative to the folder, `1_Pooling/config.json`.
    files: Vec<String>,
    /// The same of the weights of modules.
    weights: Vec<String>,
    skipped: Vec<String>,
    for_floats: bool,
}

impl Sidecars {
    /// Looks at the files in a model's folder, and in the folders one level down: sentence-transformers keeps
    /// `1_Pooling/config.json` there, and transformers `additional_chat_templates`.
    pub fn find(folder: &Path) -> Result<Sidecars, Error> {
        let real = fs::canonicalize(folder).map_err(Error::io("list", folder))?;
        let mut finder =
            Finder { roots: roots(&real), found: Sidecars { folder: folder.into(), ..Sidecars::default() } };
        let modules = if folder.join(MODULES).leads_to_file() { finder.modules() } else { Vec::new() };
        finder.top(&modules)?;
        Ok(finder.found)
    }

    /// The folders of modules that have weights of their own.
    pub fn modules(&self) -> Vec<&str> {
        let mut modules: Vec<&str> =
            self.weights.iter().filter_map(|name| Some(name.split_once('/')?.0)).collect();
        modules.dedup();
        modules
    }

    /// What is left out that might have been expected, for the user.
    pub fn warnings(&self) -> &[String] {
        &self.skipped
    }

    /// The same files for a model whose weights are floats where the source's were codes: `config.json` speaks of no quantisation
    /// any more.
    pub fn for_floats(self) -> Sidecars {
        Sidecars { for_floats: true, ..self }
    }

    /// Copies the files; with `dtype`, `config.json` tells that type wherever it tells one.
    pub fn copy(&self, to: &Path, dtype: Option<Dtype>) -> Result<(), Error> {
        let dtype = dtype.or(self.for_floats.then_some(Dtype::Bf16));
        self.files.iter().try_for_each(|name| self.copy_file(name, to, dtype))
    }

    /// Copies the weights of a module as they are.
    pub fn copy_weights(&self, module: &str, to: &Path) -> Result<(), Error> {
        let of_module = |name: &&String| name.split_once('/').is_some_and(|(folder, _)| folder == module);
        self.weights.iter().filter(of_module).try_for_each(|name| self.copy_file(name, to, None))
    }

    fn copy_file(&self, name: &str, to: &Path, dtype: Option<Dtype>) -> Result<(), Error> {
        let (from, to) = (self.folder.join(name), to.join(name));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        // Contents only: a read-only base must not give a read-only output.
        let mut source = files::open(&from).map_err(Error::io("read", &from))?;
        let mut target = File::create_new(&to).map_err(Error::io("create", &to))?;
        if let (CONFIG, Some(dtype)) = (name, dtype) {
            let mut text = Vec::new();
            files::read_at_most(source, files::SETTINGS, &mut text).map_err(Error::io("read", &from))?;
            let mut text = settings::with_dtype(&text, dtype);
            if self.for_floats {
                text = settings::without_quantisation(text);
            }
            return io::Write::write_all(&mut target, &text).map_err(Error::io("write", &to));
        }
        io::copy(&mut source, &mut target).map(drop).map_err(Error::io("write", &to))
    }
}

struct Finder {
    /// Where a link may lead.
    roots: Vec<PathBuf>,
    found: Sidecars,
}

#[derive(Deserialize)]
struct Module {
    path: String,
}

impl Finder {
    /// The folders that `modules.json` names.
    fn modules(&mut self) -> Vec<String> {
        match settings::read::<Vec<Module>>(&self.found.folder.join(MODULES)) {
            Ok(listed) => {
                listed.into_iter().map(|module| module.path.trim_end_matches('/').to_owned()).collect()
            }
            Err(e) => {
                let note = format!(
                    "`{MODULES}` beside the base's weights is no list of modules ({e}): none is merged"
                );
                self.found.skipped.push(note);
                Vec::new()
            }
        }
    }

    fn top(&mut self, modules: &[String]) -> Result<(), Error> {
        let mut others = Vec::new();
        for name in names(&self.found.folder)? {
            if self.found.folder.join(&name).leads_to_folder() {
                if !name.starts_with('.') && !self.folder(&name, modules.contains(&name))? {
                    others.push(name);
                }
            } else if belongs(&name) && self.is_usable(&name)? {
                self.found.files.push(name);
            }
        }
        if !others.is_empty() {
            let names = others.join(", ");
            self.found
                .skipped
                .push(format!("left out are folders with weights of another model or format: {names}"));
        }
        let nested = modules.iter().filter(|path| path.contains('/'));
        let left_out =
            |path: &String| format!("the module {path} is left out: it is not a folder beside the weights");
        self.found.skipped.extend(nested.map(left_out));
        Ok(())
    }

    /// A folder beside the weights; false if it holds another model.
    fn folder(&mut self, folder: &str, is_module: bool) -> Result<bool, Error> {
        let path = self.found.folder.join(folder);
        if !self.leads_within(&path) {
            self.skip(folder, "leads out of the model's folder");
            return Ok(true);
        }
        let names = names(&path)?;
        let has_weights = names.iter().any(|name| is_weights(name));
        if has_weights && !is_module {
            return Ok(false);
        }
        for name in names {
            let weights = is_weights(&name) || (has_weights && name.ends_with(".index.json"));
            let belongs = belongs(&name);
            let name = format!("{folder}/{name}");
            if (weights || belongs) && self.is_usable(&name)? {
                if weights { &mut self.found.weights } else { &mut self.found.files }.push(name);
            }
        }
        Ok(true)
    }

    /// Whether a file can be copied; that it cannot is noted, or is an error where it is no use to go on.
    fn is_usable(&mut self, name: &str) -> Result<bool, Error> {
        let path = self.found.folder.join(name);
        let kind = match fs::metadata(&path) {
            Ok(meta) => meta.file_type(),
            Err(e) if path.is_link() => {
                self.skip(name, &format!("is a link that leads nowhere ({e}); download the model again"));
                return Ok(false);
            }
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        if kind.is_dir() {
            return Ok(false); // two levels down
        }
        if !kind.is_file() {
            self.skip(name, "is not a regular file");
            return Ok(false);
        }
        if !self.leads_within(&path) {
            self.skip(name, "is a link out of the model's folder");
            return Ok(false);
        }
        match files::is_lfs_pointer(&files::open(&path).map_err(Error::io("open", &path))?) {
            true => Err(Error::Sidecar { path, reason: format!("it {}", files::LFS_POINTER) }),
            false => Ok(true),
        }
    }

    /// Notes a file by its name alone: the note goes into the model card, where paths of this machine have no place.
    fn skip(&mut self, name: &str, why: &str) {
        self.found.skipped.push(format!("`{name}` beside the base's weights is left out: it {why}"));
    }

    fn leads_within(&self, path: &Path) -> bool {
        fs::canonicalize(path).is_ok_and(|real| self.roots.iter().any(|root| real.starts_with(root)))
    }
}

/// A model's own folder, and for one in the Hugging Face cache the files of all its versions: a link that leads elsewhere could
/// bring anything into an output that is made to be published.
fn roots(folder: &Path) -> Vec<PathBuf> {
    let repository = hub_repository(folder).map(|(repository, _)| repository.join("blobs"));
    std::iter::once(folder.to_path_buf()).chain(repository).collect()
}

/// The repository in the Hugging Face cache that a path lies in, `models--ORG--NAME/snapshots/HASH`, and its name, `ORG/NAME`.
pub fn hub_repository(path: &Path) -> Option<(&Path, String)> {
    path.ancestors().find_map(|snapshots| {
        let repository =
            snapshots.parent().filter(|_| snapshots.file_name() == Some("snapshots".as_ref()))?;
        let name = repository.file_name()?.to_str()?.strip_prefix("models--")?;
        Some((repository, name.replace("--", "/")))
    })
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names = entries.map(name).collect::<io::Result<Vec<_>>>().map_err(Error::io("list", folder))?;
    names.sort_unstable();
    Ok(names)
}
