use super::{Error, FORMAT};
use crate::checkpoint::{self, Stored, TensorSpec, TensorWriter, aligned_order};
use std::collections::BTreeMap;
use std::path::Path;

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

/// Writes a calibration file, under a temporary name until it is complete. `alias` maps a weight to the one whose inputs
/// it shares.
pub fn write(
    path: &Path,
    entries: &BTreeMap<String, Entry>,
    alias: &BTreeMap<String, String>,
    samples: usize,
    fingerprint: Option<&str>,
) -> Result<(), Error> {
    let mut values = BTreeMap::new();
    let mut specs = Vec::new();
    for (weight, entry) in entries {
        for (ending, data, shape) in [
            ("input", &entry.input, vec![entry.tokens, entry.d_in]),
            ("gram", &entry.gram, vec![entry.d_in, entry.d_in]),
            ("mean", &entry.mean, vec![entry.d_in]),
        ] {
            let Some(data) = data else { continue };
            let name = format!("{weight}.{ending}");
            if data.len() != shape.iter().product::<usize>() {
                return Err(Error::format(path, format!("`{name}` has {} values for {shape:?}", data.len())));
            }
            values.insert(name.clone(), data);
            specs.push(TensorSpec { name, dtype: Stored::F32, shape });
        }
    }
    aligned_order(&mut specs);
    let metadata = metadata(path, entries, alias, samples, fingerprint)?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = tempfile::Builder::new()
        .prefix(".calibration.partial-")
        .tempdir_in(folder)
        .map_err(|e| io("create a folder in", folder, e))?;
    let temporary = folder.path().join("calibration.safetensors");
    let mut writer = TensorWriter::create(&temporary, &specs, &metadata)?;
    for data in specs.iter().filter_map(|spec| values.get(&spec.name)) {
        writer.write(bytemuck::cast_slice(data))?;
    }
    writer.finish()?;
    std::fs::rename(&temporary, path).map_err(|e| io("write", path, e))
}

fn metadata(
    path: &Path,
    entries: &BTreeMap<String, Entry>,
    alias: &BTreeMap<String, String>,
    samples: usize,
    fingerprint: Option<&str>,
) -> Result<BTreeMap<String, String>, Error> {
    let n: BTreeMap<&String, usize> = entries.iter().map(|(weight, entry)| (weight, entry.tokens)).collect();
    let n = serde_json::to_string(&n).map_err(|e| io("write", path, e.into()))?;
    let alias = serde_json::to_string(alias).map_err(|e| io("write", path, e.into()))?;
    let mut metadata = BTreeMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("n".to_owned(), n),
        ("samples".to_owned(), samples.to_string()),
        ("alias".to_owned(), alias),
    ]);
    metadata.extend(fingerprint.map(|f| ("fingerprint".to_owned(), f.to_owned())));
    Ok(metadata)
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    checkpoint::Error::Io { action, path: path.to_path_buf(), source }.into()
}

#[cfg(test)]
mod tests {
    use super::super::{Calibration, Statistic};
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
        let entry = Entry {
            tokens: 2,
            d_in: 3,
            input: Some(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            gram: None,
            mean: Some(vec![2.5, 3.5, 4.5]),
        };
        let gram = Entry { tokens: 7, d_in: 1, gram: Some(vec![9.0]), ..Entry::default() };
        let entries = BTreeMap::from([("q.weight".to_owned(), entry), ("f.weight".to_owned(), gram)]);
        let alias = BTreeMap::from([("k.weight".to_owned(), "q.weight".to_owned())]);
        write(&path, &entries, &alias, 1, None).unwrap();

        let read = Calibration::open(&path).unwrap();
        assert_eq!(read.source_of("k.weight"), Some(("q.weight", Statistic::Input)));
        assert_eq!(read.source_of("f.weight"), Some(("f.weight", Statistic::Gram)));
        assert_eq!(read.source_of("v.weight"), None);
        assert_eq!((read.tokens("q.weight"), read.tokens("f.weight")), (2, 7));
        let values = read.read("q.weight", Statistic::Input).unwrap();
        assert_eq!((values.rows, values.cols), (2, 3));
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&values.bytes)[5], 6.0);
        assert!(read.covers("k.weight", 3, Path::new("expert")).unwrap());
        assert!(read.covers("k.weight", 4, Path::new("expert")).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
