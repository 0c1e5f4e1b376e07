use super::{Error, FORMAT};
use crate::backend::Dtype;
use crate::checkpoint::{Checkpoint, Extent, TensorFile, TensorMeta, fingerprint, widen};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// A calibration file whose header has been read and checked.
#[derive(Clone, Debug)]
pub struct Calibration {
    file: TensorFile,
    tokens: BTreeMap<String, usize>,
    alias: BTreeMap<String, String>,
    fingerprint: Option<String>,
    /// Weight -> its name in the file, where the caller calls it otherwise.
    names: HashMap<String, String>,
}

/// What the file has of one weight's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// Every token.
    Input,
    /// `X^T X` alone.
    Gram,
}

/// A matrix as it is stored.
#[derive(Clone, Debug)]
pub struct Values {
    /// Rows: tokens of an input, `d_in` of a Gram matrix.
    pub rows: usize,
    /// `d_in`.
    pub cols: usize,
    /// Type of the values.
    pub dtype: Dtype,
    /// The values, row-major, little-endian, all finite.
    pub bytes: Vec<u8>,
}

impl Calibration {
    /// Opens a file and checks everything that its header says.
    pub fn open(path: &Path) -> Result<Calibration, Error> {
        let file = TensorFile::open(path)?;
        let text = |key: &str| file.metadata().get(key).cloned();
        if text("format").as_deref() != Some(FORMAT) {
            let found = text("format").map_or("none".to_owned(), |f| format!("`{f}`"));
            let reason = format!("its metadata should say `format: {FORMAT}`, but has {found}");
            return Err(Error::format(path, reason));
        }
        let calibration = Calibration {
            tokens: json_object(&file, "n")?,
            alias: json_object(&file, "alias")?,
            fingerprint: text("fingerprint"),
            names: HashMap::new(),
            file,
        };
        calibration.check_tensors()?;
        calibration.check_aliases()?;
        Ok(calibration)
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The same file, asked by other names: `names` maps each to the one that the file has.
    pub fn with_names(self, names: HashMap<String, String>) -> Calibration {
        Calibration { names, ..self }
    }

    /// The weight under which the inputs of `weight` are stored: itself, or the one it shares them with. Raw tokens say
    /// more than their Gram matrix, so they come first where a file has both.
    pub fn source_of<'a>(&'a self, weight: &'a str) -> Option<(&'a str, Statistic)> {
        let weight = self.names.get(weight).map_or(weight, String::as_str);
        let stored = |name: &'a str| {
            let has = |s: &Statistic| self.file.tensors().contains_key(&format!("{name}.{}", s.ending()));
            Some((name, [Statistic::Input, Statistic::Gram].into_iter().find(has)?))
        };
        stored(weight).or_else(|| stored(self.alias.get(weight)?))
    }

    /// Checks that the inputs of `weight` have `d_in` dimensions; false if the file has no inputs of it.
    pub fn covers(&self, weight: &str, d_in: usize, expert: &Path) -> Result<bool, Error> {
        let Some((source, statistic)) = self.source_of(weight) else { return Ok(false) };
        let cols = self.meta(source, statistic)?.shape.last().copied().unwrap_or(0);
        if cols == d_in {
            return Ok(true);
        }
        Err(Error::OtherModel {
            path: self.path().to_path_buf(),
            expert: expert.to_path_buf(),
            reason: format!(
                "it gives `{source}` inputs of {cols} dimensions, but the layer `{weight}` takes {d_in}; it was \
                 captured from another model"
            ),
        })
    }

    /// Whether the mean of the inputs stored under `source` is known, beside them or through them; if it is stored, checks
    /// that it has `d_in` dimensions.
    pub fn has_mean(&self, source: &str, d_in: usize, expert: &Path) -> Result<bool, Error> {
        let Some(meta) = self.file.tensors().get(&format!("{source}.mean")) else {
            return Ok(self.rows(source).is_some());
        };
        if meta.shape == [d_in] {
            return Ok(true);
        }
        Err(Error::OtherModel {
            path: self.path().to_path_buf(),
            expert: expert.to_path_buf(),
            reason: format!(
                "`{source}.mean` has shape {:?}, but the inputs have {d_in} dimensions; it was captured from another \
                 model",
                meta.shape
            ),
        })
    }

    /// The mean of the inputs stored under `source`: as it is stored, else of the tokens.
    pub fn mean(&self, source: &str) -> Result<Vec<f32>, Error> {
        let key = format!("{source}.mean");
        if let Some(meta) = self.file.tensors().get(&key) {
            let bytes = self.file.read_values(&key, 0..meta.elements())?;
            return Ok(widen(meta.float().unwrap_or(Dtype::F32), &bytes));
        }
        let Values { rows, cols, dtype, bytes } = self.read(source, Statistic::Input)?;
        let mut sum = vec![0.0; cols];
        for token in widen(dtype, &bytes).chunks(cols) {
            sum.iter_mut().zip(token).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        Ok(sum.into_iter().map(|sum| (sum / rows as f64) as f32).collect())
    }

    /// Number of tokens behind the inputs stored under `source`.
    pub fn tokens(&self, source: &str) -> usize {
        self.tokens.get(source).copied().unwrap_or_else(|| self.rows(source).unwrap_or(0))
    }

    /// The input tokens or the Gram matrix stored under `source`.
    pub fn read(&self, source: &str, statistic: Statistic) -> Result<Values, Error> {
        let (rows, cols, dtype, extent) = self.place(source, statistic)?;
        Ok(Values { rows, cols, dtype, bytes: extent.read()? })
    }

    /// Where they lie: rows, columns, type, and the place of the values.
    pub fn place(&self, source: &str, statistic: Statistic) -> Result<(usize, usize, Dtype, Extent), Error> {
        let key = format!("{source}.{}", statistic.ending());
        let meta = self.file.meta(&key)?;
        let (Some((rows, cols)), Some(dtype)) = (meta.matrix(), meta.float()) else {
            return Err(Error::format(self.path(), format!("`{key}` is not a matrix of f16 or f32")));
        };
        Ok((rows, cols, dtype, self.file.values(&key, 0..rows * cols)?))
    }

    /// Whether the file names the weights it belongs to; a file that does not is taken at its word.
    pub fn has_fingerprint(&self) -> bool {
        self.fingerprint.is_some()
    }

    /// Checks a fingerprint that is present against the expert's weights. Reads all of the weights it covers.
    pub fn check_fingerprint(&self, expert: &Checkpoint) -> Result<(), Error> {
        let Some(expected) = &self.fingerprint else { return Ok(()) };
        let other = |reason: String| Error::OtherModel {
            path: self.path().to_path_buf(),
            expert: expert.path().to_path_buf(),
            reason,
        };
        let weights = self.weights();
        if let Some(missing) = weights.iter().find(|w| expert.get(w).is_none()) {
            return Err(other(format!("it covers the weight `{missing}`, which the expert does not have")));
        }
        let found = fingerprint(expert, weights.iter().map(String::as_str))?;
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        Err(other(format!(
            "its fingerprint is {}..., but these weights have {}...; it was captured from another model, so capture it \
             again from this expert",
            expected.chars().take(12).collect::<String>(),
            found.chars().take(12).collect::<String>()
        )))
    }

    /// All weights whose inputs the file has, sorted.
    fn weights(&self) -> BTreeSet<String> {
        let own = self.file.tensors().keys().filter_map(|key| Some(split_key(key)?.0.to_owned()));
        own.chain(self.alias.keys().cloned()).collect()
    }

    fn meta(&self, source: &str, statistic: Statistic) -> Result<&TensorMeta, Error> {
        Ok(self.file.meta(&format!("{source}.{}", statistic.ending()))?)
    }

    /// Tokens stored under `source`, if they are.
    fn rows(&self, source: &str) -> Option<usize> {
        self.file.tensors().get(&format!("{source}.input"))?.shape.first().copied()
    }

    /// Every tensor has a known key, the shape and type that its kind asks for, and a number of tokens.
    fn check_tensors(&self) -> Result<(), Error> {
        for (key, meta) in self.file.tensors() {
            self.check_tensor(key, meta).map_err(|reason| Error::format(self.path(), reason))?;
        }
        Ok(())
    }

    fn check_tensor(&self, key: &str, meta: &TensorMeta) -> Result<(), String> {
        let Some((weight, kind)) = split_key(key) else {
            return Err(format!("the key `{key}` should end in .input, .gram or .mean"));
        };
        if !matches!(meta.float(), Some(Dtype::F16 | Dtype::F32)) {
            return Err(format!("`{key}` has type {}; f16 or f32 is expected", meta.dtype));
        }
        let fits = match (kind, &meta.shape[..]) {
            (Kind::Input, &[n, d]) => n > 0 && d > 0,
            (Kind::Gram, &[rows, cols]) => rows == cols && rows > 0,
            (Kind::Mean, &[d]) => d > 0,
            _ => false,
        };
        if !fits {
            return Err(format!("`{key}` has shape {:?}; {} is expected", meta.shape, kind.shape()));
        }
        match (kind, self.tokens.get(weight), self.rows(weight)) {
            (_, Some(0), _) => Err(format!("`n` in its metadata gives `{weight}` no tokens")),
            (Kind::Gram, None, None) => {
                Err(format!("`n` in its metadata lacks the number of tokens behind `{key}`"))
            }
            (Kind::Input, Some(&n), Some(rows)) if n != rows => {
                Err(format!("`n` in its metadata gives `{weight}` {n} tokens, but `{key}` has {rows} rows"))
            }
            _ => Ok(()),
        }
    }

    /// Every alias leads to a weight with inputs of its own.
    fn check_aliases(&self) -> Result<(), Error> {
        let lost =
            self.alias.iter().find(|(_, to)| self.alias.contains_key(*to) || self.source_of(to).is_none());
        match lost {
            None => Ok(()),
            Some((weight, to)) => Err(Error::format(
                self.path(),
                format!(
                    "`alias` in its metadata sends `{weight}` to `{to}`, which has neither .input nor .gram"
                ),
            )),
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Input,
    Gram,
    Mean,
}

impl Kind {
    fn shape(self) -> &'static str {
        match self {
            Kind::Input => "[n, d_in] with at least one token",
            Kind::Gram => "[d_in, d_in]",
            Kind::Mean => "[d_in]",
        }
    }
}

impl Statistic {
    fn ending(self) -> &'static str {
        match self {
            Statistic::Input => "input",
            Statistic::Gram => "gram",
        }
    }
}

fn split_key(key: &str) -> Option<(&str, Kind)> {
    let (weight, ending) = key.rsplit_once('.')?;
    let kind = match ending {
        "input" => Kind::Input,
        "gram" => Kind::Gram,
        "mean" => Kind::Mean,
        _ => return None,
    };
    (!weight.is_empty()).then_some((weight, kind))
}

/// A metadata entry that is a JSON object; empty where it is absent.
fn json_object<T: DeserializeOwned>(file: &TensorFile, key: &str) -> Result<BTreeMap<String, T>, Error> {
    match file.metadata().get(key) {
        None => Ok(BTreeMap::new()),
        Some(text) => serde_json::from_str(text).map_err(|e| {
            Error::format(
                file.path(),
                format!("`{key}` in its metadata is not the expected JSON object ({e})"),
            )
        }),
    }
}
