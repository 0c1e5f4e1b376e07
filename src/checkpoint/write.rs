//! Safetensors files out: the header first, since all shapes are known, then the values as they come.

use super::file::LENGTH_PREFIX;
use super::journal::FileWritten;
use super::{Checkpoint, Error};
use crate::host::fs::File;
use crc32fast::Hasher;
use safetensors::Dtype as Stored;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A tensor that is going to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// How it is stored.
    pub dtype: Stored,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of the values.
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }
}

/// The length prefix and JSON header of a file with these tensors, in this order.
pub(super) fn header(
    tensors: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut map = Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".to_owned(), serde_json::to_value(metadata)?);
    }
    let mut at = 0;
    for spec in tensors {
        let end = at + spec.bytes() as usize;
        let info = TensorInfo { dtype: spec.dtype, shape: spec.shape.clone(), data_offsets: (at, end) };
        map.insert(spec.name.clone(), serde_json::to_value(info)?);
        at = end;
    }
    Ok(with_length(serde_json::to_vec(&Value::Object(map))?))
}

/// Pads a header to a multiple of 8 bytes, as the format advises, and puts its length before it.
pub(super) fn with_length(mut json: Vec<u8>) -> Vec<u8> {
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    debug_assert_eq!(bytes.len() as u64, LENGTH_PREFIX);
    bytes.append(&mut json);
    bytes
}

/// Orders the tensors of a file so that every value is aligned to its size: wider types first, then by name.
pub fn aligned_order(tensors: &mut [TensorSpec]) {
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
}

/// A safetensors file being written, values in the order of its tensors.
pub struct TensorWriter {
    path: PathBuf,
    out: BufWriter<File>,
    missing: u64,
    hash: Hasher,
    bytes: u64,
}

impl TensorWriter {
    /// Creates the file and writes its header.
    pub fn create(
        path: &Path,
        tensors: &[TensorSpec],
        metadata: &BTreeMap<String, String>,
    ) -> Result<TensorWriter, Error> {
        let header = header(tensors, metadata).map_err(|e| Error::io("write", path)(e.into()))?;
        let file = File::create_new(path).map_err(Error::io("create", path))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&header).map_err(Error::io("write", path))?;
        let missing = tensors.iter().map(TensorSpec::bytes).sum();
        let mut hash = Hasher::new();
        hash.update(&header);
        Ok(TensorWriter { path: path.to_path_buf(), out, missing, hash, bytes: header.len() as u64 })
    }

    /// Appends the next values.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.missing = self.missing.checked_sub(bytes.len() as u64).ok_or_else(|| self.wrong_size())?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Flushes the file to the disk; it must hold exactly what its header says.
    pub fn finish(mut self) -> Result<FileWritten, Error> {
        if self.missing != 0 {
            return Err(self.wrong_size());
        }
        self.out.flush().map_err(Error::io("write", &self.path))?;
        self.out.get_ref().sync_all().map_err(Error::io("write", &self.path))?;
        Ok(FileWritten { bytes: self.bytes, crc32: self.hash.finalize() })
    }

    fn wrong_size(&self) -> Error {
        let reason =
            "the values written do not fill the shapes of its header (a defect of esmerge; please report it)";
        Error::Output { path: self.path.clone(), reason: reason.to_owned() }
    }
}

/// One file of an output model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its name, as Hugging Face names it.
    pub file: String,
    /// Its tensors, in the order in which they are written.
    pub tensors: Vec<TensorSpec>,
}

/// How the names of weights files begin by which loaders find them.
const STEMS: [&str; 4] = ["model", "diffusion_pytorch_model", "open_clip_model", "consolidated"];

/// How the name of the output's weights begins: as the base's does where a loader looks for that. A variant,
/// `model.fp16.safetensors`, is read only when it is asked for, so that its output goes without.
pub fn stem(base: &Checkpoint) -> &'static str {
    let file = base.names().next().and_then(|name| Some(base.place(name)?.0));
    let name = file.and_then(|file| file.path().file_name()?.to_str()).unwrap_or_default();
    let fits = |stem: &&&str| name.strip_prefix(**stem).is_some_and(|rest| rest.starts_with(['.', '-']));
    STEMS.iter().find(fits).unwrap_or(&STEMS[0])
}

/// Distributes tensors, in the order given, over files of at most `limit` bytes of values (a larger tensor gets a file
/// of its own): `STEM.safetensors` if all fit into one, else `STEM-0000i-of-0000N.safetensors`.
pub fn shards(tensors: Vec<TensorSpec>, limit: u64, stem: &str) -> Vec<Shard> {
    let mut groups: Vec<Vec<TensorSpec>> = vec![Vec::new()];
    let mut size = 0;
    for spec in tensors {
        size += spec.bytes();
        match groups.last_mut() {
            Some(group) if group.is_empty() || size <= limit => group.push(spec),
            _ => {
                size = spec.bytes();
                groups.push(vec![spec]);
            }
        }
    }
    let count = groups.len();
    let name = |i: usize| match count {
        1 => format!("{stem}.safetensors"),
        _ => format!("{stem}-{:05}-of-{count:05}.safetensors", i + 1),
    };
    let shard = |(i, mut tensors): (usize, Vec<TensorSpec>)| {
        aligned_order(&mut tensors);
        Shard { file: name(i), tensors }
    };
    groups.into_iter().enumerate().map(shard).collect()
}

/// `STEM.safetensors.index.json` of a model in several shards.
pub fn index(shards: &[Shard]) -> Value {
    let total: u64 = shards.iter().flat_map(|s| &s.tensors).map(TensorSpec::bytes).sum();
    let mut map: Vec<(&str, &str)> =
        shards.iter().flat_map(|s| s.tensors.iter().map(|t| (t.name.as_str(), s.file.as_str()))).collect();
    map.sort_unstable();
    let weight_map: Map<String, Value> =
        map.into_iter().map(|(tensor, file)| (tensor.to_owned(), Value::from(file))).collect();
    serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, elements: usize) -> TensorSpec {
        TensorSpec { name: name.to_owned(), dtype: Stored::F16, shape: vec![elements] }
    }

    #[test]
    fn one_file_where_all_fits() {
        let shards = shards(vec![spec("b", 4), spec("a", 4)], 16, "model");
        assert_eq!(shards.len(), 1);
        assert_eq!(shards[0].file, "model.safetensors");
        assert_eq!(shards[0].tensors, [spec("a", 4), spec("b", 4)]);
    }

    #[test]
    fn shards_keep_the_order_and_the_limit_and_a_large_tensor_gets_its_own() {
        let specs = vec![spec("a", 3), spec("b", 50), spec("c", 2), spec("d", 2), spec("e", 3)];
        let shards = shards(specs, 10, "model");
        let names: Vec<Vec<&str>> =
            shards.iter().map(|s| s.tensors.iter().map(|t| t.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["a"], vec!["b"], vec!["c", "d"], vec!["e"]]);
        assert_eq!(shards[3].file, "model-00004-of-00004.safetensors");
        assert_eq!(index(&shards)["metadata"]["total_size"], 120);
        assert_eq!(index(&shards)["weight_map"]["d"], "model-00003-of-00004.safetensors");
    }
}
