//! A calibration file out: values first, to a temporary file, then header and values under the file's own name. What is
//! in memory is one matrix.

use super::place;
use super::{Error, FORMAT};
use crate::checkpoint::{self, Left, Stored, Temporary, TensorSpec, TensorWriter, aligned_order};
use crate::host::fs::File;
use half::f16;
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The inputs of one weight; at least one of `input` and `gram` is present.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// Number of tokens.
    pub tokens: usize,
    /// Dimensions of a token.
    pub d_in: usize,
    /// All tokens, `tokens x d_in`.
    pub input: Option<Vec<f32>>,
    /// `X^T X`, `d_in x d_in`.
    pub gram: Option<Vec<f32>>,
    /// The mean token.
    pub mean: Option<Vec<f32>>,
}

/// A calibration file being written.
pub struct Writer {
    path: PathBuf,
    folder: Temporary,
    values: File,
    /// Whether input tokens are rounded to f16.
    half: bool,
    specs: Vec<TensorSpec>,
    offsets: HashMap<String, u64>,
    end: u64,
    tokens: BTreeMap<String, usize>,
    alias: BTreeMap<String, String>,
}

impl Writer {
    /// Refuses, before any work, a path where something is that would be lost: all but a calibration file, or any file if
    /// `force` says so.
    pub fn check(path: &Path, force: bool) -> Result<(), Error> {
        place::check(path, force)
    }

    /// Begins a file that will appear at `path`, whose folder is made. `half` rounds input tokens to f16: half the
    /// size, for an error of 1e-4 and more in the merged deltas.
    pub fn create(path: &Path, half: bool) -> Result<Writer, Error> {
        let folder = Temporary::beside(path)?;
        let values = folder.path().join("values");
        let values = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&values)
            .map_err(|e| io("create", &values, e))?;
        Ok(Writer {
            path: path.to_path_buf(),
            folder,
            values,
            half,
            specs: Vec::new(),
            offsets: HashMap::new(),
            end: 0,
            tokens: BTreeMap::new(),
            alias: BTreeMap::new(),
        })
    }

    /// What a killed run had left of this file.
    pub fn left(&self) -> Option<&Left> {
        self.folder.left()
    }

    /// Adds the inputs of a weight, which those of `sharing` share.
    pub fn add(&mut self, weight: &str, entry: &Entry, sharing: &[String]) -> Result<(), Error> {
        let (n, d) = (entry.tokens, entry.d_in);
        self.tensor(weight, "input", &entry.input, vec![n, d])?;
        self.tensor(weight, "gram", &entry.gram, vec![d, d])?;
        self.tensor(weight, "mean", &entry.mean, vec![d])?;
        self.tokens.insert(weight.to_owned(), n);
        self.alias.extend(sharing.iter().map(|other| (other.clone(), weight.to_owned())));
        Ok(())
    }

    fn tensor(
        &mut self,
        weight: &str,
        ending: &str,
        data: &Option<Vec<f32>>,
        shape: Vec<usize>,
    ) -> Result<(), Error> {
        let Some(data) = data else { return Ok(()) };
        let name = format!("{weight}.{ending}");
        if data.len() != shape.iter().product::<usize>() {
            return Err(Error::format(
                &self.path,
                format!("`{name}` has {} values for {shape:?}", data.len()),
            ));
        }
        let rounded: Vec<f16>;
        let (dtype, bytes): (_, &[u8]) = if self.half && ending == "input" {
            rounded = data.iter().map(|&v| f16::from_f32(v)).collect();
            if rounded.iter().any(|v| !v.is_finite()) {
                return Err(Error::format(
                    &self.path,
                    format!("`{name}` holds values too large for f16; use f32"),
                ));
            }
            (Stored::F16, half_bytes(&rounded))
        } else {
            (Stored::F32, bytemuck::cast_slice(data))
        };
        self.values.write_all(bytes).map_err(|e| io("write", &self.path, e))?;
        self.offsets.insert(name.clone(), self.end);
        self.end += bytes.len() as u64;
        self.specs.push(TensorSpec { name, dtype, shape });
        Ok(())
    }

    /// All weights whose inputs are there, their own or shared.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.tokens.keys().chain(self.alias.keys()).map(String::as_str)
    }

    /// Puts header and values together and gives the file its name.
    pub fn finish(mut self, samples: usize, fingerprint: Option<&str>) -> Result<(), Error> {
        aligned_order(&mut self.specs);
        let metadata = self.metadata(samples, fingerprint)?;
        let temporary = self.folder.path().join("calibration.safetensors");
        let mut writer = TensorWriter::create(&temporary, &self.specs, &metadata)?;
        for spec in &self.specs {
            let offset = self.offsets.get(&spec.name).copied().unwrap_or_default();
            copy(&mut self.values, offset, spec.bytes(), &mut writer, &self.path)?;
        }
        writer.finish()?;
        let path = &self.path;
        Ok(self.folder.publish(|_| checkpoint::rename(&temporary, path))?)
    }

    fn metadata(&self, samples: usize, fingerprint: Option<&str>) -> Result<BTreeMap<String, String>, Error> {
        let json = |map: serde_json::Result<String>| map.map_err(|e| io("write", &self.path, e.into()));
        let mut metadata = BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("n".to_owned(), json(serde_json::to_string(&self.tokens))?),
            ("samples".to_owned(), samples.to_string()),
            ("alias".to_owned(), json(serde_json::to_string(&self.alias))?),
        ]);
        metadata.extend(fingerprint.map(|f| ("fingerprint".to_owned(), f.to_owned())));
        Ok(metadata)
    }
}

/// Bytes copied at a time.
const CHUNK: u64 = 4 << 20;

fn copy(from: &mut File, offset: u64, bytes: u64, to: &mut TensorWriter, path: &Path) -> Result<(), Error> {
    from.seek(SeekFrom::Start(offset)).map_err(|e| io("read back", path, e))?;
    let mut left = bytes;
    let mut buffer = Vec::new();
    while left > 0 {
        buffer.resize(left.min(CHUNK) as usize, 0);
        from.read_exact(&mut buffer).map_err(|e| io("read back", path, e))?;
        to.write(&buffer)?;
        left -= buffer.len() as u64;
    }
    Ok(())
}

fn half_bytes(values: &[f16]) -> &[u8] {
    use half::slice::HalfFloatSliceExt;
    bytemuck::cast_slice(values.reinterpret_cast())
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    checkpoint::Error::Io { action, path: path.to_path_buf(), source }.into()
}

#[cfg(test)]
mod tests {
    use super::super::{Calibration, Statistic};
    use super::*;

    fn example() -> (Entry, Entry) {
        let entry = Entry {
            tokens: 2,
            d_in: 3,
            input: Some(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            gram: None,
            mean: Some(vec![2.5, 3.5, 4.5]),
        };
        (entry, Entry { tokens: 7, d_in: 1, gram: Some(vec![9.0]), ..Entry::default() })
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
        let (entry, gram) = example();
        for half in [false, true] {
            let mut writer = Writer::create(&path, half).unwrap();
            writer.add("q.weight", &entry, &["k.weight".to_owned()]).unwrap();
            writer.add("f.weight", &gram, &[]).unwrap();
            writer.finish(1, None).unwrap();

            let read = Calibration::open(&path).unwrap();
            assert_eq!(read.source_of("k.weight"), Some(("q.weight", Statistic::Input)));
            assert_eq!(read.source_of("f.weight"), Some(("f.weight", Statistic::Gram)));
            assert_eq!(read.source_of("v.weight"), None);
            assert_eq!((read.tokens("q.weight"), read.tokens("f.weight")), (2, 7));
            let values = read.read("q.weight", Statistic::Input).unwrap();
            assert_eq!((values.rows, values.cols), (2, 3));
            if half {
                assert_eq!(f16::from_le_bytes([values.bytes[10], values.bytes[11]]).to_f32(), 6.0);
            } else {
                assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&values.bytes)[5], 6.0);
            }
            assert!(read.covers("k.weight", 3, Path::new("expert")).unwrap());
            assert!(read.covers("k.weight", 4, Path::new("expert")).is_err());
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}
