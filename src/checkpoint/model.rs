//! A model on disk: one safetensors file, or a folder of them.

use super::{Error, TensorFile, TensorMeta};
use indexmap::IndexMap;
use serde::Deserialize;
use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The headers of a model's files, and where each tensor is.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// The folder whose other files (configuration, tokenizer) belong to this model.
    folder: Option<PathBuf>,
    files: Vec<TensorFile>,
    /// Tensor -> file, in the order of the files and of the data in them.
    tensors: IndexMap<String, usize>,
}

impl Checkpoint {
    /// Opens a folder (one weights file, or shards with their index) or a single `.safetensors` file. A file that is
    /// its folder's only weights file stands for the folder.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        if path.is_dir() {
            return match weights_in(path)? {
                Weights::Single(file) => Checkpoint::single(path, &file, Some(path)),
                Weights::Sharded(index) => Checkpoint::sharded(path, &index),
            };
        }
        if !path.exists() {
            let hint = "models are read from local files, so check the path or download the model first";
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
        let file = TensorFile::open(file)?;
        let tensors = file.tensors().keys().map(|name| (name.clone(), 0)).collect();
        let folder = folder.map(Path::to_path_buf);
        Ok(Checkpoint { path: path.to_path_buf(), folder, files: vec![file], tensors })
    }

    fn sharded(path: &Path, index: &Path) -> Result<Checkpoint, Error> {
        let map = read_index(index)?;
        let mut names: Vec<&String> = map.values().collect();
        names.sort_unstable();
        names.dedup();
        let mut files = Vec::new();
        let mut tensors = IndexMap::new();
        for shard in &names {
            let file = TensorFile::open(&shard_path(path, index, shard)?)?;
            let indexed = file.tensors().keys().filter(|tensor| map.get(*tensor) == Some(shard));
            tensors.extend(indexed.map(|tensor| (tensor.clone(), files.len())));
            files.push(file);
        }
        match map.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
            None => {
                Ok(Checkpoint { path: path.to_path_buf(), folder: Some(path.to_path_buf()), files, tensors })
            }
            Some((tensor, shard)) => {
                let reason =
                    format!("it places tensor `{tensor}` in {shard}, but that file has no such tensor");
                Err(Error::BadIndex { path: index.to_path_buf(), reason })
            }
        }
    }

    /// The path the model was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder with the model's configuration and tokenizer files, if it has one of its own.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Names of all tensors, in the order of the files.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's entry, if the model has it.
    pub fn get(&self, name: &str) -> Option<&TensorMeta> {
        self.files.get(*self.tensors.get(name)?)?.tensors().get(name)
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, name: &str) -> Result<&TensorFile, Error> {
        self.tensors
            .get(name)
            .and_then(|&file| self.files.get(file))
            .ok_or_else(|| Error::NoTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    /// Raw bytes `range` of a tensor.
    pub fn read_bytes(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, Error> {
        self.file_of(name)?.read_bytes(name, range)
    }

    /// Raw bytes of the values `range` of a floating-point tensor, checked to be finite.
    pub fn read_values(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, Error> {
        self.file_of(name)?.read_values(name, range)
    }
}

/// How a folder stores its weights.
enum Weights {
    Single(PathBuf),
    Sharded(PathBuf),
}

/// The weights of a folder: Hugging Face's names first, then whatever single safetensors file or index is there.
fn weights_in(folder: &Path) -> Result<Weights, Error> {
    let usual = folder.join("model.safetensors");
    if usual.is_file() {
        return Ok(Weights::Single(usual));
    }
    let usual = folder.join("model.safetensors.index.json");
    if usual.is_file() {
        return Ok(Weights::Sharded(usual));
    }
    let names = file_names(folder)?;
    let ending = |end: &str| names.iter().filter(|n| n.ends_with(end)).collect::<Vec<_>>();
    match (&ending(".safetensors.index.json")[..], &ending(".safetensors")[..]) {
        ([index], _) => Ok(Weights::Sharded(folder.join(index))),
        ([], [file]) if *file != "adapter_model.safetensors" => Ok(Weights::Single(folder.join(file))),
        (_, files) => Err(Error::NotAModel { path: folder.to_path_buf(), reason: no_weights(&names, files) }),
    }
}

fn no_weights(names: &[String], safetensors: &[&String]) -> String {
    if names.iter().any(|n| n == "adapter_model.safetensors") {
        return "this folder holds a LoRA adapter, not a model, and adapters cannot be merged in this version; merge \
                it into its base model first (in PEFT: `merge_and_unload`)"
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
    let entries = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", folder))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

#[derive(Deserialize)]
struct Index {
    weight_map: IndexMap<String, String>,
}

fn read_index(path: &Path) -> Result<IndexMap<String, String>, Error> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| Error::BadIndex {
        path: path.to_path_buf(),
        reason: format!("it is not a shard index with a `weight_map` of tensor to file ({e})"),
    })?;
    Ok(index.weight_map)
}

/// A shard lies beside its index; a path that leads elsewhere is refused.
fn shard_path(folder: &Path, index: &Path, shard: &str) -> Result<PathBuf, Error> {
    let bad = |reason| Error::BadIndex { path: index.to_path_buf(), reason };
    if Path::new(shard).file_name() != Some(OsStr::new(shard)) {
        return Err(bad(format!("the shard `{shard}` is not a plain file name")));
    }
    let path = folder.join(shard);
    if path.is_file() {
        return Ok(path);
    }
    Err(bad(format!("it names the shard {shard}, which is missing; download it")))
}
