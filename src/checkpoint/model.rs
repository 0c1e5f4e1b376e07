//! A model on disk: one safetensors file, or a folder of them.

use super::codes::Codes;
use super::header::Unique;
use super::quantised::as_floats;
use super::rows::{Row, Rows, Table};
use super::slices::{experts_apart, slice_name, slice_of};
use super::{Error, Extent, Stored, TensorFile, TensorMeta, TensorSpec, gguf};
use crate::backend::Dtype;
use crate::files;
use crate::host::PathExt;
use crate::host::fs;
use indexmap::IndexMap;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The headers of a model's files, and where each tensor is.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// The folder whose other files (configuration, tokenizer) belong to this model.
    folder: Option<PathBuf>,
    files: Vec<TensorFile>,
    /// In the order of the files and of the data in them.
    tensors: IndexMap<String, Place>,
    /// What a reader of the log should know about how the files were understood.
    notes: Vec<String>,
}

/// Where a tensor is.
#[derive(Clone, Debug)]
struct Place {
    file: usize,
    /// Its name in that file, where it goes by another here.
    stored: Option<String>,
    /// Which of the matrices it is that the file has under that name.
    slice: Option<Slice>,
}

/// Some rows of a tensor, as a matrix: of one with a matrix for each expert.
#[derive(Clone, Debug)]
struct Slice {
    /// Values of the tensor before it.
    first: usize,
    meta: TensorMeta,
}

/// A tensor by what it is made of.
pub(super) enum View<'a> {
    /// Another, under a name of its own.
    Whole(&'a str),
    /// Some rows of a matrix.
    Rows(&'a str, Range<usize>),
    /// Two matrices, one below the other.
    Below([&'a str; 2]),
}

impl<'a> View<'a> {
    /// What it is made of.
    pub fn of(&self) -> Vec<&'a str> {
        match self {
            View::Whole(of) | View::Rows(of, _) => vec![of],
            View::Below(of) => of.to_vec(),
        }
    }
}

impl Place {
    fn of_file(file: usize) -> Place {
        Place { file, stored: None, slice: None }
    }

    /// The same tensor under another name here.
    fn called(&self, name: &str, own: &str) -> Place {
        let stored = self.stored.as_deref().unwrap_or(own);
        let stored = (stored != name).then(|| stored.to_owned());
        Place { stored, ..self.clone() }
    }
}

impl Checkpoint {
    /// Opens a folder (one weights file, or shards with their index) or a single `.safetensors` file. A file that is
    /// its folder's only weights file stands for the folder.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        if path.leads_to_folder() {
            return match weights_in(path)? {
                Weights::Single(file) => Checkpoint::single_or_shards(path, &file),
                Weights::Sharded(index) => Checkpoint::sharded(path, &index),
            };
        }
        if !path.is_there() {
            let hint = "check the path; a model of the Hugging Face hub is named ORG/NAME, and fetched by --download";
            return Err(Error::NotFound { path: path.to_path_buf(), hint });
        }
        let folder = path.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
        let folder = folder.filter(|folder| match weights_in(folder) {
            Ok(Weights::Single(only)) => only.file_name() == path.file_name(),
            _ => false,
        });
        Checkpoint::single(path, path, folder)
    }

    fn single(path: &Path, file: &Path, folder: Option<&Path>) -> Result<Checkpoint, Error> {
        let file = if is_gguf(file) { gguf::open(file)? } else { TensorFile::open(file)? };
        let tensors = file.tensors().keys().map(|name| (name.clone(), Place::of_file(0))).collect();
        let folder = folder.map(Path::to_path_buf);
        let model =
            Checkpoint { path: path.to_path_buf(), folder, files: vec![file], tensors, notes: Vec::new() };
        Ok(experts_apart(as_floats(model)))
    }

    /// The single file of a folder; its shards, where there are some beside it that hold more.
    fn single_or_shards(path: &Path, file: &Path) -> Result<Checkpoint, Error> {
        let single = Checkpoint::single(path, file, Some(path))?;
        let index = file.with_extension("safetensors.index.json");
        if !index.leads_to_file() {
            return Ok(single);
        }
        let map = read_index(&index)?;
        let Some(lacking) = map.keys().find(|tensor| single.get(tensor).is_none()) else { return Ok(single) };
        let note = format!(
            "{} lacks `{lacking}`, which {} has: the shards are read in its place, though transformers would read it; remove \
             it or them",
            file.display(),
            index.display()
        );
        let mut sharded = Checkpoint::sharded(path, &index)?;
        sharded.notes.push(note);
        Ok(sharded)
    }

    fn sharded(path: &Path, index: &Path) -> Result<Checkpoint, Error> {
        let map = read_index(index)?;
        let mut names: Vec<&String> = map.values().collect();
        names.sort_unstable();
        names.dedup();
        let mut files = Vec::new();
        let mut tensors = IndexMap::new();
        let mut omitted = Vec::new();
        for shard in &names {
            let file = TensorFile::open(&shard_path(path, index, shard)?)?;
            for tensor in file.tensors().keys() {
                match map.get(tensor) {
                    Some(place) if place == *shard => {}
                    Some(_) => continue, // the index names another shard's copy
                    None => omitted.push(tensor.clone()),
                }
                tensors.insert(tensor.clone(), Place::of_file(files.len()));
            }
            files.push(file);
        }
        if let Some((tensor, shard)) = map.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
            let reason = format!("it places tensor `{tensor}` in {shard}, but that file has no such tensor");
            return Err(Error::BadIndex { path: index.to_path_buf(), reason });
        }
        let notes = omitted_from_index(index, &omitted).into_iter().collect();
        let path = path.to_path_buf();
        Ok(experts_apart(as_floats(Checkpoint { folder: Some(path.clone()), path, files, tensors, notes })))
    }

    /// Sees a tensor as the floats that its codes stand for, by a name and in a shape of their own.
    pub(super) fn decode(&mut self, name: &str, seen_as: &str, shape: Vec<usize>, codes: Codes) {
        let Some((at, _, Place { file, stored, .. })) = self.tensors.get_full(name) else { return };
        let (place, stored) = (*file, stored.as_deref().unwrap_or(name).to_owned());
        if let Some(file) = self.files.get_mut(place) {
            file.decode(&stored, shape, codes);
        }
        if seen_as != name {
            self.tensors.shift_remove(name);
            let stored = Some(stored);
            self.tensors.shift_insert(at, seen_as.to_owned(), Place { file: place, stored, slice: None });
        }
    }

    /// Sees each matrix of a tensor of three dimensions as a tensor of its own.
    pub(super) fn take_apart(&mut self, name: &str) {
        let (Some(whole), Some((at, _, place))) = (self.get(name).cloned(), self.tensors.get_full(name))
        else {
            return;
        };
        let [count, rows, cols] = whole.shape[..] else { return };
        let bytes = whole.bytes / count.max(1) as u64;
        let slice = |index: usize| {
            let offset = whole.offset + index as u64 * bytes;
            let meta = TensorMeta { shape: vec![rows, cols], offset, bytes, ..whole };
            let name_here = slice_name(name, index);
            let slice = Some(Slice { first: index * rows * cols, meta });
            let place = Place { slice, ..place.called(&name_here, name) };
            (name_here, place)
        };
        let slices: Vec<(String, Place)> = (0..count).map(slice).collect();
        if slices.iter().any(|(name, _)| self.tensors.contains_key(name)) {
            return;
        }
        drop(self.tensors.splice(at..=at, slices));
    }

    /// Of a matrix of a tensor that a file has as one, the tensor's name here, and which it is of how many.
    pub fn slice<'a>(&self, name: &'a str) -> Option<(&'a str, usize, usize)> {
        let Place { file, stored, slice: Some(_) } = self.tensors.get(name)? else { return None };
        let (whole, index) = slice_of(name)?;
        let stored = self.files.get(*file)?.tensors().get(stored.as_deref()?)?;
        Some((whole, index, stored.shape.first().copied()?))
    }

    /// The tensors of a file that is to hold some of these, in some types: the matrices of experts together, as they are stored.
    pub fn specs<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
        dtype: impl Fn(&str) -> Option<Stored>,
    ) -> Vec<TensorSpec> {
        let spec = |name: &str| {
            let (shape, dtype) = (&self.get(name)?.shape, dtype(name)?);
            match self.slice(name) {
                None => Some(TensorSpec { name: name.to_owned(), dtype, shape: shape.clone() }),
                Some((whole, 0, count)) => {
                    let shape = std::iter::once(count).chain(shape.iter().copied()).collect();
                    Some(TensorSpec { name: whole.to_owned(), dtype, shape })
                }
                Some(_) => None,
            }
        };
        names.into_iter().filter_map(spec).collect()
    }

    /// Leaves tensors out of the model.
    pub(super) fn forget<'n>(&mut self, names: impl IntoIterator<Item = &'n String>) {
        names.into_iter().for_each(|name| drop(self.tensors.shift_remove(name)));
    }

    /// Adds to what a reader of the log should know.
    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Whether a tensor's values are stored as codes, and seen as float32.
    pub fn is_coded(&self, name: &str) -> bool {
        self.place(name).is_some_and(|(file, stored)| file.is_coded(stored))
    }

    /// The type that a tensor is written in again: its own, bfloat16 for one that was stored as codes.
    pub fn written_as(&self, name: &str) -> Option<Dtype> {
        let own = self.get(name)?.float()?;
        let of_rows = self.place(name).and_then(|(file, stored)| file.dtype_of_rows(stored));
        Some(if self.is_coded(name) { Dtype::Bf16 } else { of_rows.unwrap_or(own) })
    }

    /// The same model with other rows in a tensor: those of `tables`, in which the rows are alike.
    pub fn with_rows(
        mut self,
        name: &str,
        tables: Vec<Table>,
        rows: Arc<Vec<Row>>,
    ) -> Result<Checkpoint, Error> {
        let meta = self.required(name)?;
        let mut shape = meta.shape.clone();
        let cols = shape.iter().skip(1).product();
        if let Some(first) = shape.first_mut() {
            *first = rows.len();
        }
        let dtype = self.written_as(name).unwrap_or(Dtype::F32);
        let (file, stored) = self.required_place(name)?;
        let table = file.with_rows(stored, shape, Rows::new(tables, rows, cols, dtype))?;
        if let Some(place) = self.tensors.get_mut(name) {
            place.file = self.files.len();
            self.files.push(table);
        }
        Ok(self)
    }

    /// The path the model was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Paths of the files with its weights.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(TensorFile::path)
    }

    /// The folder with the model's configuration and tokenizer files, if it has one of its own.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Names of all tensors, in the order of the files.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.tensors.keys().map(String::as_str)
    }

    /// What a reader of the log should know about how the files were understood.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// A tensor's entry, if the model has it.
    pub fn get(&self, name: &str) -> Option<&TensorMeta> {
        let Place { file, stored, slice } = self.tensors.get(name)?;
        match slice {
            Some(slice) => Some(&slice.meta),
            None => self.files.get(*file)?.tensors().get(stored.as_deref().unwrap_or(name)),
        }
    }

    /// The file that holds a tensor, and the tensor's name there: for a matrix of a tensor the whole's.
    pub fn place<'a>(&'a self, name: &'a str) -> Option<(&'a TensorFile, &'a str)> {
        let Place { file, stored, .. } = self.tensors.get(name)?;
        Some((self.files.get(*file)?, stored.as_deref().unwrap_or(name)))
    }

    fn required(&self, name: &str) -> Result<&TensorMeta, Error> {
        self.get(name).ok_or_else(|| Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    fn required_place<'a>(&'a self, name: &'a str) -> Result<(&'a TensorFile, &'a str), Error> {
        self.place(name).ok_or_else(|| Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    /// The same files seen through other names: `names` maps each name of the view to one of this model's. What it does not
    /// name is not in the view.
    pub fn view<'n>(&self, names: impl IntoIterator<Item = (&'n str, &'n str)>) -> Checkpoint {
        let renamed =
            |(name, own): (&str, &str)| Some((name.to_owned(), self.tensors.get(own)?.called(name, own)));
        Checkpoint { tensors: names.into_iter().filter_map(renamed).collect(), ..self.clone() }
    }

    /// A model of tensors of several: each by its name here, the model it is in, and its name there. What this model is beside its
    /// tensors it stays.
    pub fn composed(&self, parts: &[(String, &Checkpoint, &str)]) -> Checkpoint {
        let mut composed = Checkpoint { files: Vec::new(), tensors: IndexMap::new(), ..self.clone() };
        let mut first_files: Vec<(&Path, usize)> = Vec::new();
        for (name, model, own) in parts {
            let Some(place) = model.tensors.get(*own) else { continue };
            let known = first_files.iter().find(|(path, _)| *path == model.path()).map(|(_, first)| *first);
            let first = known.unwrap_or_else(|| {
                first_files.push((model.path(), composed.files.len()));
                composed.files.extend(model.files.iter().cloned());
                composed.files.len() - model.files.len()
            });
            let file = first + place.file;
            composed.tensors.insert(name.clone(), Place { file, ..place.called(name, own) });
        }
        composed
    }

    /// The same model with some tensors seen otherwise, and without those in `gone`.
    pub(super) fn seen_as(
        &self,
        gone: &HashSet<&str>,
        views: &[(String, View)],
    ) -> Result<Checkpoint, Error> {
        let mut seen = self.clone();
        seen.tensors.retain(|name, _| !gone.contains(name.as_str()));
        let own = Arc::new(self.clone());
        let mut rows_of: HashMap<[usize; 2], Arc<Vec<Row>>> = HashMap::new();
        // tensors of other rows, by the file of the first
        let mut made: BTreeMap<usize, Vec<(String, TensorMeta, Rows)>> = BTreeMap::new();
        for (name, view) in views {
            let of = view.of()[0];
            let meta = self.required(of)?;
            let (Some(place), cols) = (self.tensors.get(of), meta.matrix().map_or(0, |(_, cols)| cols))
            else {
                continue;
            };
            match view {
                View::Whole(of) => drop(seen.tensors.insert(name.clone(), place.called(name, of))),
                View::Rows(of, rows) => {
                    let size = meta.bytes / meta.elements().max(1) as u64;
                    let (first, values) = (rows.start * cols, rows.len() * cols);
                    let before = place.slice.as_ref().map_or(0, |slice| slice.first);
                    let meta = TensorMeta {
                        shape: vec![rows.len(), cols],
                        offset: meta.offset + first as u64 * size,
                        bytes: values as u64 * size,
                        ..*meta
                    };
                    let slice = Some(Slice { first: before + first, meta });
                    seen.tensors.insert(name.clone(), Place { slice, ..place.called(name, of) });
                }
                View::Below(of) => {
                    let rows_of_one = |meta: &TensorMeta| meta.matrix().map_or(0, |(rows, _)| rows);
                    let counts = [rows_of_one(meta), rows_of_one(self.required(of[1])?)];
                    let rows = rows_of.entry(counts).or_insert_with(|| {
                        let of = |table: usize| (0..counts[table]).map(move |row| Row::Of { table, row });
                        Arc::new(of(0).chain(of(1)).collect())
                    });
                    let table =
                        |tensor: &&str| Table { model: Arc::clone(&own), tensor: (*tensor).to_owned() };
                    let dtype = self.written_as(of[0]).unwrap_or(Dtype::F32);
                    let made_of = Rows::new(of.iter().map(table).collect(), Arc::clone(rows), cols, dtype);
                    let shape = vec![counts[0] + counts[1], cols];
                    let bytes = 4 * shape.iter().product::<usize>() as u64;
                    let meta = TensorMeta { dtype: Stored::F32, shape, bytes, ..*meta };
                    made.entry(place.file).or_default().push((name.clone(), meta, made_of));
                }
            }
        }
        for (file, tensors) in made {
            let Some(source) = self.files.get(file) else { continue };
            let place = Place::of_file(seen.files.len());
            seen.tensors.extend(tensors.iter().map(|(name, ..)| (name.clone(), place.clone())));
            seen.files.push(source.of_rows(tensors));
        }
        Ok(seen)
    }

    /// The same model with the norms of old BERT checkpoints, `LayerNorm.gamma` and `.beta`, under today's names.
    pub fn with_modern_norms(self) -> Checkpoint {
        let modern = |name: &str| {
            let spelling = [(".gamma", ".weight"), (".beta", ".bias")];
            let stem = |ending| name.strip_suffix(ending).filter(|stem| stem.ends_with("LayerNorm"));
            spelling.iter().find_map(|(old, new)| Some(format!("{}{new}", stem(old)?)))
        };
        let names: Vec<(String, &str)> =
            self.names().map(|name| (modern(name).unwrap_or_else(|| name.to_owned()), name)).collect();
        self.view(names.iter().map(|(name, own)| (name.as_str(), *own)))
    }

    /// Names that are no tensors of the model but stand in the metadata of a file for one of them, as
    /// `safetensors.torch.save_model` leaves shared tensors: the name, and the tensor's.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.files.iter().flat_map(|file| file.metadata());
        let of_tensor = |(alias, name): &(&String, &String)| {
            !self.tensors.contains_key(*alias) && self.tensors.contains_key(*name)
        };
        pairs.filter(of_tensor).map(|(alias, name)| (alias.as_str(), name.as_str()))
    }

    /// Raw bytes `range` of a tensor.
    pub fn read_bytes(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, Error> {
        self.bytes(name, range)?.read()
    }

    /// Where these bytes lie.
    pub fn bytes(&self, name: &str, range: Range<u64>) -> Result<Extent, Error> {
        let (file, stored) = self.required_place(name)?;
        let Some(Slice { first, meta }) = self.slice_at(name) else { return file.bytes(stored, range) };
        let first = *first as u64 * (meta.bytes / meta.elements().max(1) as u64);
        file.bytes(stored, first + range.start..first + range.end.min(meta.bytes))
    }

    /// Raw bytes of the values `range` of a floating-point tensor, checked to be finite.
    pub fn read_values(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, Error> {
        self.values(name, range)?.read()
    }

    /// Where these values lie.
    pub fn values(&self, name: &str, range: Range<usize>) -> Result<Extent, Error> {
        let (file, stored) = self.required_place(name)?;
        let first = self.slice_at(name).map_or(0, |slice| slice.first);
        file.values(stored, first + range.start..first + range.end)
    }

    fn slice_at(&self, name: &str) -> Option<&Slice> {
        self.tensors.get(name)?.slice.as_ref()
    }
}

/// Whether a file begins as GGUF does.
fn is_gguf(path: &Path) -> bool {
    let mut start = [0; gguf::MAGIC.len()];
    files::open(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok()) && &start == gguf::MAGIC
}

/// The file of a model's weights, or their index, with all links resolved: two spellings of a path are one model if it is the
/// same. `None` where there is nothing.
pub fn weights_file(path: &Path) -> Option<PathBuf> {
    let file = match weights_in(path) {
        Ok(Weights::Single(file) | Weights::Sharded(file)) => file,
        Err(_) => path.to_path_buf(), // a file itself, or nothing
    };
    fs::canonicalize(file).ok()
}

/// How a folder stores its weights.
enum Weights {
    Single(PathBuf),
    Sharded(PathBuf),
}

/// The weights of a folder: Hugging Face's names first, then whatever single safetensors file or index is there.
fn weights_in(folder: &Path) -> Result<Weights, Error> {
    let usual = folder.join("model.safetensors");
    if usual.leads_to_file() {
        return Ok(Weights::Single(usual));
    }
    let usual = folder.join("model.safetensors.index.json");
    if usual.leads_to_file() {
        return Ok(Weights::Sharded(usual));
    }
    let names = file_names(folder)?;
    let ending = |end: &str| names.iter().filter(|n| n.ends_with(end)).collect::<Vec<_>>();
    match (&ending(".safetensors.index.json")[..], &ending(".safetensors")[..]) {
        ([index], _) => Ok(Weights::Sharded(folder.join(index))),
        ([], [file]) if *file != "adapter_model.safetensors" => Ok(Weights::Single(folder.join(file))),
        ([], []) if ending(".gguf").len() == 1 => Ok(Weights::Single(folder.join(ending(".gguf")[0]))),
        (_, files) => Err(Error::NotAModel { path: folder.to_path_buf(), reason: no_weights(&names, files) }),
    }
}

fn no_weights(names: &[String], safetensors: &[&String]) -> String {
    if names.iter().any(|n| n == "adapter_model.safetensors") {
        return "this folder holds a LoRA adapter, not a model; an adapter is an expert among `models`, or is added to its \
                model by MODEL+ADAPTER (it needs its adapter_config.json)"
            .to_owned();
    }
    match safetensors {
        [_, ..] => format!(
            "the folder holds several weights files ({}) and no model.safetensors.index.json; name one of them",
            safetensors.iter().take(4).map(|s| s.as_str()).collect::<Vec<_>>().join(", ")
        ),
        [] if names.iter().any(|n| n.ends_with(".bin") || n.ends_with(".pt") || n.ends_with(".pth")) => {
            "the folder holds PyTorch pickles but no safetensors file; convert it first (load and `save_pretrained`)"
                .to_owned()
        }
        [] => "the folder holds no weights; expected model.safetensors, or model.safetensors.index.json with its \
               shards"
            .to_owned(),
    }
}

fn file_names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = crate::host::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", folder))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Bytes of an index: those of the largest models take 10 MB.
const MAX_INDEX: u64 = 256 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: Unique,
}

fn read_index(path: &Path) -> Result<IndexMap<String, String>, Error> {
    let text = files::read(path, MAX_INDEX).map_err(Error::io("read", path))?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| Error::BadIndex {
        path: path.to_path_buf(),
        reason: format!("it is not a shard index with a `weight_map` of tensor to file ({e})"),
    })?;
    Ok(index.weight_map.0)
}

/// The shards that an index names, each once.
pub(crate) fn shards_of(index: &Path) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = read_index(index)?.into_values().collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// A shard that a folder's index names and that is not in the folder.
pub(crate) fn missing_shard(folder: &Path) -> Option<String> {
    let Ok(Weights::Sharded(index)) = weights_in(folder) else { return None };
    shards_of(&index).ok()?.into_iter().find(|shard| !folder.join(shard).leads_to_file())
}

/// What is said of tensors that lie in an index's shards but not in the index. transformers reads whole shards, so they are
/// part of the model.
fn omitted_from_index(index: &Path, omitted: &[String]) -> Option<String> {
    let first = omitted.first()?;
    let (n, them) = match omitted.len() {
        1 => ("one tensor of its shards".to_owned(), "it is"),
        n => (format!("{n} tensors of its shards"), "they are"),
    };
    Some(format!("{} omits {n}, `{first}`; {them} read all the same, as transformers does", index.display()))
}

/// A shard lies beside its index; a path that leads elsewhere is refused.
fn shard_path(folder: &Path, index: &Path, shard: &str) -> Result<PathBuf, Error> {
    let bad = |reason| Error::BadIndex { path: index.to_path_buf(), reason };
    if Path::new(shard).file_name() != Some(OsStr::new(shard)) {
        return Err(bad(format!("the shard `{shard}` is not a plain file name")));
    }
    let path = folder.join(shard);
    if path.leads_to_file() {
        return Ok(path);
    }
    Err(bad(format!("it names the shard {shard}, which is missing; download it")))
}
