//! `esmerge-delta-1`: the merged deltas in f32, before inter-layer scaling and alpha, with what is needed to make the
//! model from them.

use super::extent::{Extent, Source, write_all_at};
use super::file::LENGTH_PREFIX;
use super::write::{TensorSpec, header, with_length};
use super::{Error, TensorFile, parent, sync};
use crate::backend::Dtype;
use crate::host::PathExt;
use crate::host::fs::{self, File};
use indexmap::IndexMap;
use safetensors::Dtype as Stored;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The value of `format` in the metadata.
pub const FORMAT: &str = "esmerge-delta-1";

/// What the file says of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeltaEntry {
    /// Inter-layer scale.
    pub beta: f64,
    /// How it was merged: `esm`, `tsv_m`, `average`, ...
    pub role: String,
    /// Whether alpha multiplies it.
    pub alpha: bool,
}

/// What the file says of the merge as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeltaMeta {
    /// SHA-256 of the base (see [`fingerprint`](super::fingerprint)).
    pub base_fingerprint: String,
    /// The merge method, for reports.
    pub method: String,
    /// Names of the experts, for reports.
    pub models: Vec<String>,
    /// The alpha of the merge that kept the file.
    pub alpha: f64,
    /// The output type of that merge; `None` for the base's own.
    pub out_dtype: Option<Dtype>,
    /// The recipe, verbatim.
    pub recipe: String,
    /// Tensor by tensor.
    pub tensors: IndexMap<String, DeltaEntry>,
}

/// Metadata keys that hold JSON objects of tensor name to value.
const BETA: &str = "beta";
const ROLE: &str = "role";
const ALPHA_SCOPE: &str = "alpha_scope";

impl DeltaMeta {
    fn to_strings(&self) -> Result<BTreeMap<String, String>, serde_json::Error> {
        let each = |value: fn(&DeltaEntry) -> serde_json::Value| {
            let map: serde_json::Map<_, _> =
                self.tensors.iter().map(|(name, entry)| (name.clone(), value(entry))).collect();
            serde_json::to_string(&map)
        };
        let mut strings = BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("base_fingerprint".to_owned(), self.base_fingerprint.clone()),
            ("merge_method".to_owned(), self.method.clone()),
            ("models".to_owned(), serde_json::to_string(&self.models)?),
            ("alpha".to_owned(), self.alpha.to_string()),
            ("recipe".to_owned(), self.recipe.clone()),
            (BETA.to_owned(), each(|e| e.beta.into())?),
            (ROLE.to_owned(), each(|e| e.role.as_str().into())?),
            (ALPHA_SCOPE.to_owned(), each(|e| e.alpha.into())?),
        ]);
        if let Some(dtype) = self.out_dtype {
            strings.insert("out_dtype".to_owned(), dtype.to_string());
        }
        Ok(strings)
    }
}

/// A delta file being written in a temporary folder. The values come first; the header, whose betas are known only when all
/// values are, is put into the room left for it by [`seal`](DeltaWriter::seal). Dropped, the file is removed.
#[derive(Debug)]
pub struct DeltaWriter {
    source: Arc<Source>,
    specs: Vec<TensorSpec>,
    /// Bytes reserved for length prefix and header.
    room: u64,
    offsets: IndexMap<String, u64>,
}

/// The file's name meanwhile.
const NAME: &str = "deltas";
/// More characters than any f64 takes in JSON.
const LONGEST_BETA: usize = 32;

impl DeltaWriter {
    /// A file in `folder` that will have these tensors, in the order given. `longest` is the metadata with any
    /// betas: it sizes the header.
    pub fn create(
        folder: &Path,
        tensors: Vec<(String, Vec<usize>)>,
        longest: &DeltaMeta,
    ) -> Result<DeltaWriter, Error> {
        let specs: Vec<TensorSpec> =
            tensors.into_iter().map(|(name, shape)| TensorSpec { name, dtype: Stored::F32, shape }).collect();
        let metadata = longest.to_strings().map_err(|e| Error::io("write", folder)(e.into()))?;
        let header = header(&specs, &metadata).map_err(|e| Error::io("write", folder)(e.into()))?;
        let room = (header.len() + LONGEST_BETA * specs.len()).next_multiple_of(64) as u64;
        let mut offsets = IndexMap::new();
        let mut at = room;
        for spec in &specs {
            offsets.insert(spec.name.clone(), at);
            at += spec.bytes();
        }
        let path = folder.join(NAME);
        let file = File::options().create_new(true).read(true).write(true).open(&path);
        let file = file.map_err(Error::io("create", &path))?;
        Ok(DeltaWriter { source: Arc::new(Source::own(path, file)), specs, room, offsets })
    }

    /// Removes the file of a writer that did not finish from its folder, if there is one.
    pub fn remove(folder: &Path) -> Result<(), Error> {
        let path = folder.join(NAME);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// The place of the values from `first` on of a tensor, and of the tensors behind it. Values may be written in any order.
    pub fn place(&self, name: &str, first: usize) -> Result<DeltaPlace, Error> {
        let offset = self.offset(name)? + 4 * first as u64;
        Ok(DeltaPlace { source: Arc::clone(&self.source), offset })
    }

    /// Where the values `range` of a tensor lie, little-endian f32, once they are written.
    pub fn bytes(&self, name: &str, range: Range<usize>) -> Result<Extent, Error> {
        let offset = self.offset(name)? + 4 * range.start as u64;
        Ok(Extent::new(&self.source, offset, 4 * range.len()))
    }

    fn offset(&self, name: &str) -> Result<u64, Error> {
        let missing = || Error::NoTensor { path: self.source.path().to_path_buf(), tensor: name.to_owned() };
        self.offsets.get(name).copied().ok_or_else(missing)
    }

    /// Writes the header, and everything to the disk.
    pub fn seal(&self, metadata: &DeltaMeta) -> Result<(), Error> {
        let path = self.source.path();
        let strings = metadata.to_strings().map_err(|e| Error::io("write", path)(e.into()))?;
        let json = header(&self.specs, &strings).map_err(|e| Error::io("write", path)(e.into()))?;
        let mut json = json[LENGTH_PREFIX as usize..].to_vec();
        if json.len() as u64 > self.room - LENGTH_PREFIX {
            let reason = "its header outgrew the room left for it (a defect of esmerge; please report it)";
            return Err(Error::Output { path: path.to_path_buf(), reason: reason.to_owned() });
        }
        json.resize((self.room - LENGTH_PREFIX) as usize, b' '); // trailing blanks are part of a valid header
        write(&self.source, &with_length(json), 0)?;
        self.source.file().map_or(Ok(()), File::sync_all).map_err(Error::io("write", path))
    }

    /// Gives the sealed file its name; an existing file makes way only if `replace` says so.
    pub fn publish(self, path: &Path, replace: bool) -> Result<(), Error> {
        if replace {
            return sync::rename(self.source.path(), path);
        }
        let renamed = rename_to_new(self.source.path(), path).and_then(|()| sync::entries(parent(path)));
        renamed.map_err(Error::io("write", path))
    }
}

impl Drop for DeltaWriter {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.source.path()); // it has another name by now, or is not wanted
    }
}

/// A place in a delta file that is being written, for another thread.
#[derive(Clone, Debug)]
pub struct DeltaPlace {
    source: Arc<Source>,
    offset: u64,
}

impl DeltaPlace {
    /// Writes values.
    pub fn write(&self, values: &[f32]) -> Result<(), Error> {
        write(&self.source, bytemuck::cast_slice(values), self.offset) // little-endian hosts only, as everywhere in this crate
    }
}

fn write(source: &Source, bytes: &[u8], offset: u64) -> Result<(), Error> {
    let written = source.file().map_or(Ok(()), |file| write_all_at(file, bytes, offset));
    written.map_err(Error::io("write", source.path()))
}

/// Renames, unless the new name is taken: a link is refused then, and where there are no links a look has to do.
fn rename_to_new(from: &Path, to: &Path) -> std::io::Result<()> {
    match fs::hard_link(from, to) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists || fs::symlink_metadata(to).is_ok() => {
            Err(ErrorKind::AlreadyExists.into())
        }
        Err(_) => fs::rename(from, to),
        linked => linked,
    }
}

/// A delta file that was kept.
#[derive(Clone, Debug)]
pub struct DeltaFile {
    file: TensorFile,
    meta: DeltaMeta,
}

impl DeltaFile {
    /// Whether a file says that a merge kept it; not, if it cannot be read.
    pub fn is_one(path: &Path) -> bool {
        let file = TensorFile::open(path);
        file.is_ok_and(|file| file.metadata().get("format").is_some_and(|format| format == FORMAT))
    }

    /// Opens and checks the file.
    pub fn open(path: &Path) -> Result<DeltaFile, Error> {
        if !path.is_there() {
            let hint = "give the file that `merge --keep-delta` wrote";
            return Err(Error::NotFound { path: path.to_path_buf(), hint });
        }
        let file = TensorFile::open(path)?;
        let reader = Reader { file: &file };
        if file.metadata().get("format").map(String::as_str) != Some(FORMAT) {
            return Err(reader.bad(format!(
                "its metadata has no `format: {FORMAT}`; give the file that `merge --keep-delta` wrote"
            )));
        }
        let meta = reader.metadata()?;
        Ok(DeltaFile { file, meta })
    }

    /// What the file says of the merge.
    pub fn meta(&self) -> &DeltaMeta {
        &self.meta
    }

    /// The tensors.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }
}

struct Reader<'a> {
    file: &'a TensorFile,
}

impl Reader<'_> {
    fn metadata(&self) -> Result<DeltaMeta, Error> {
        let mut beta: BTreeMap<String, f64> = self.json(BETA)?;
        let mut role: BTreeMap<String, String> = self.json(ROLE)?;
        let mut alpha: BTreeMap<String, bool> = self.json(ALPHA_SCOPE)?;
        let mut tensors = IndexMap::new();
        for (name, meta) in self.file.tensors() {
            if meta.float() != Some(Dtype::F32) {
                return Err(self.bad(format!("tensor `{name}` should be float32")));
            }
            let (Some(beta), Some(role), Some(alpha)) =
                (beta.remove(name), role.remove(name), alpha.remove(name))
            else {
                return Err(
                    self.bad(format!("its metadata lacks beta, role or alpha scope of tensor `{name}`"))
                );
            };
            if !beta.is_finite() {
                return Err(self.bad(format!("the beta of tensor `{name}` is not a number")));
            }
            tensors.insert(name.clone(), DeltaEntry { beta, role, alpha });
        }
        let out_dtype = self.file.metadata().get("out_dtype").and_then(|name| Dtype::from_name(name));
        Ok(DeltaMeta {
            base_fingerprint: self.string("base_fingerprint")?,
            method: self.string("merge_method")?,
            models: self.json("models")?,
            alpha: self.json("alpha")?,
            out_dtype,
            recipe: self.string("recipe")?,
            tensors,
        })
    }

    fn string(&self, key: &str) -> Result<String, Error> {
        let value = self.file.metadata().get(key).cloned();
        value.ok_or_else(|| self.bad(format!("its metadata lacks `{key}`; merge again with --keep-delta")))
    }

    fn json<T: DeserializeOwned>(&self, key: &str) -> Result<T, Error> {
        serde_json::from_str(&self.string(key)?)
            .map_err(|e| self.bad(format!("`{key}` in its metadata cannot be read ({e})")))
    }

    fn bad(&self, reason: String) -> Error {
        Error::BadDelta { path: PathBuf::from(self.file.path()), reason }
    }
}
