//! Low-rank adapters: what they make of the weights of a base, `W + s B A` for some and whole tensors for others.
//!
//! A file names modules and factors in its own spelling. Opened beside its base, an adapter says by the base's tensors what
//! differs; the differences are formed on a device, tensor by tensor or piece by piece, from the factors alone.

mod base;
mod formats;
mod low_rank;
mod mixtures;
mod original;
mod peft;
mod settings;
mod single;
mod targets;

pub use base::Named;

use crate::backend::{self, Backend, Dtype, Shape};
use crate::checkpoint::{Checkpoint, Error, Extent, LoraModule, Prefix, TensorMeta};
use indexmap::IndexMap;
use low_rank::LowRank;
use serde_json::Value;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An adapter, by the tensors of the base it was opened for.
#[derive(Clone, Debug)]
pub struct Adapter {
    path: PathBuf,
    /// Its file.
    file: Checkpoint,
    /// What is added, by tensor.
    low_rank: IndexMap<String, Vec<LowRank>>,
    /// Tensors that it holds whole, by the base's names.
    saved: Checkpoint,
    /// These, and their keys.
    placed: Vec<(String, String)>,
    /// Whole tensors that the base has no place for: the name, and the key.
    left: Vec<(String, String)>,
    /// Keys of factors of other models than the base.
    elsewhere: Vec<String>,
    /// What stands before its modules and not before the base's, or the reverse.
    prefix: Option<Prefix>,
    /// The model that it says it was trained on.
    base: Named,
}

/// Factors as they were read.
pub type Factor<'a> = (Dtype, &'a [u8]);

/// Factors of the weight of a module, `B A` of `d_out x d_in`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// What the module is, and so how the product lies in its weight.
    pub module: LoraModule,
    /// Where `A` lies, `r x d_in`.
    pub a: Extent,
    /// Where `B` lies, `d_out x r`.
    pub b: Extent,
    /// `r`
    pub rank: usize,
    /// The factor of `B A`.
    pub scale: f64,
}

impl Adapter {
    /// Whether an adapter lies at a path: a folder with its settings and no model, or a file whose tensors are factors.
    pub fn is_one(path: &Path) -> bool {
        formats::format(path).is_some()
    }

    /// Opens an adapter of a base, whose `config.json` is given too (null where there is none).
    ///
    /// # Errors
    /// [`Error::BadAdapter`] for methods, settings and keys that would be lost, and for factors that do not fit the base's tensors.
    pub fn open(path: &Path, base: &Checkpoint, config: &Value) -> Result<Adapter, Error> {
        formats::open(path, base, config)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its file, by its own keys.
    pub fn file(&self) -> &Checkpoint {
        &self.file
    }

    /// What stands before its modules and not before the base's, or the reverse.
    pub fn prefix(&self) -> Option<&Prefix> {
        self.prefix.as_ref()
    }

    /// The model that it says it was trained on.
    pub fn base(&self) -> &Named {
        &self.base
    }

    /// Tensors that it holds whole (`modules_to_save`), by the base's names.
    pub fn saved(&self) -> &Checkpoint {
        &self.saved
    }

    /// Whole tensors that the base has no place for, such as the heads of other tasks: the name, and the key.
    pub fn left(&self) -> &[(String, String)] {
        &self.left
    }

    /// Keys of factors of other models of the same pipeline, such as text encoders beside the base.
    pub fn elsewhere(&self) -> &[String] {
        &self.elsewhere
    }

    /// Whether it has factors of a tensor.
    pub fn has_factors(&self, tensor: &str) -> bool {
        self.low_rank.contains_key(tensor)
    }

    /// Whether it changes a tensor, by factors or by holding it whole.
    pub fn changes(&self, tensor: &str) -> bool {
        self.has_factors(tensor) || self.saved.get(tensor).is_some()
    }

    /// Every key of its file that a tensor of the base is changed by: the tensor, and the key.
    pub fn uses(&self) -> impl Iterator<Item = (&str, &str)> {
        let factors = self.low_rank.iter();
        let factors = factors.flat_map(|(tensor, all)| all.iter().map(move |one| (tensor.as_str(), one)));
        let factors = factors.flat_map(|(tensor, one)| one.keys().map(move |key| (tensor, key)));
        factors.chain(self.placed.iter().map(|(tensor, key)| (tensor.as_str(), key.as_str())))
    }

    /// The factors of the weight of a linear layer or an embedding; none where it has none.
    ///
    /// # Errors
    /// Where what it does to the tensor is anything else.
    pub fn linear(&self, tensor: &str) -> Result<Option<Linear>, Error> {
        if self.saved.get(tensor).is_some() {
            return Err(bad(
                &self.path,
                format!("it holds `{tensor}` whole, which factors cannot stand for"),
            ));
        }
        let Some(all) = self.low_rank.get(tensor) else { return Ok(None) };
        match &all[..] {
            [one] if one.is_linear() => one.linear(&self.file).map(Some),
            _ => Err(bad(
                &self.path,
                format!("its factors of `{tensor}` are not those of a linear layer or an embedding"),
            )),
        }
    }

    /// What is read to form the values `range` of a tensor's difference; nothing where it has no factors.
    pub fn extents(&self, tensor: &str, range: &Range<usize>) -> Result<Vec<Extent>, Error> {
        let of_tensor = self.low_rank.get(tensor).into_iter().flatten();
        let pairs = of_tensor.map(|one| one.extents(&self.file, range)).collect::<Result<Vec<_>, _>>()?;
        Ok(pairs.into_iter().flatten().collect())
    }

    /// The values `range` of a tensor's difference `s B A`, as one row, from what [`extents`](Adapter::extents) named; none where
    /// it has no factors.
    pub fn difference<B: Backend>(
        &self,
        backend: &B,
        tensor: &str,
        range: &Range<usize>,
        factors: &[Factor],
    ) -> backend::Result<Option<B::Tensor>> {
        let Some(all) = self.low_rank.get(tensor) else { return Ok(None) };
        if let ([one], [a, b]) = (&all[..], factors) {
            return one.difference(backend, range, [*a, *b]).map(Some);
        }
        let mut sum = backend.zeros(Shape::matrix(1, range.len()))?;
        for (one, pair) in all.iter().zip(factors.chunks_exact(2)) {
            let difference = one.difference(backend, range, [pair[0], pair[1]])?;
            backend.axpby(1.0, &difference, 1.0, &mut sum)?;
        }
        Ok(Some(sum))
    }
}

/// Rows and columns of a tensor seen as a matrix: the dimensions behind the first are columns.
fn flattened(meta: &TensorMeta) -> (usize, usize) {
    let rows = meta.shape.first().copied().unwrap_or(0);
    (rows, meta.elements().checked_div(rows).unwrap_or(0))
}

/// For `map_err` and `Err`: a file of an adapter that cannot be used.
fn bad(path: &Path, reason: impl Into<String>) -> Error {
    Error::BadAdapter { path: path.to_path_buf(), reason: reason.into() }
}
