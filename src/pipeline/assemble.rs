//! Second half of a merge: `W = W0 + alpha beta dW`, rounded once, streamed into shards.

use super::outputs::write_json;
use super::weights::{BaseValues, base_row};
use super::{Error, Progress};
use crate::backend::{Backend, Dtype, Shape};
use crate::checkpoint::{
    Checkpoint, Shard, TensorSpec, TensorWriter, first_not_finite, index, shards, stem, stored,
};
use crate::method::assembly;
use crate::plan::SUM_CHUNK;
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Where the merged deltas come from.
pub(super) trait Deltas<B: Backend> {
    /// `dW` of the values `range` of a tensor, as one row; `base` holds the same values of the base.
    async fn read(
        &mut self,
        tensor: &str,
        range: Range<usize>,
        base: &BaseValues<B::Tensor>,
    ) -> Result<B::Tensor, Error>;
}

/// Deltas that are zero.
struct Nothing<'a, B> {
    backend: &'a B,
}

impl<B: Backend> Deltas<B> for Nothing<'_, B> {
    async fn read(
        &mut self,
        tensor: &str,
        range: Range<usize>,
        _: &BaseValues<B::Tensor>,
    ) -> Result<B::Tensor, Error> {
        self.backend.zeros(Shape::matrix(1, range.len())).map_err(Error::device(tensor))
    }
}

/// How a tensor of the base becomes one of the output.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// `W0 + alpha beta dW`, stored as `dtype`.
    Merge { alpha: f64, beta: f64, dtype: Dtype },
    /// `W0`, stored as `dtype`.
    Keep { dtype: Dtype },
    /// As it is.
    Copy,
}

/// The files of a model.
pub(super) struct Files {
    /// Bytes of one file.
    pub shard_size: u64,
    /// Whether even a single file gets an index, because the folder also holds tensors that are not the model's: loaders that
    /// read every `.safetensors` file of a folder go by the index where there is one.
    pub always_index: bool,
}

/// Writes the shards and, for several, their index.
pub(super) async fn write_model<B: Backend>(
    backend: &B,
    base: &Checkpoint,
    steps: &IndexMap<String, Step>,
    deltas: &mut impl Deltas<B>,
    folder: &Path,
    files: &Files,
    progress: &mut dyn Progress,
) -> Result<Vec<Shard>, Error> {
    let stem = stem(base);
    let shards = shards(specs(base, steps), files.shard_size, stem);
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    for shard in &shards {
        let mut writer = TensorWriter::create(&folder.join(&shard.file), &shard.tensors, &metadata)?;
        for tensor in &shard.tensors {
            progress.layer(&tensor.name);
            match steps.get(&tensor.name) {
                Some(&Step::Merge { alpha, beta, dtype }) => {
                    let assembly = Assembly { backend, base, tensor, alpha, beta, dtype };
                    assembly.write(deltas, &mut writer, progress).await?;
                }
                Some(&Step::Keep { dtype }) => {
                    let assembly = Assembly { backend, base, tensor, alpha: 0.0, beta: 0.0, dtype };
                    assembly.write(&mut Nothing { backend }, &mut writer, progress).await?;
                }
                _ => copy(base, tensor, &mut writer, progress)?,
            }
        }
        writer.finish()?;
    }
    if shards.len() > 1 || files.always_index {
        write_json(folder, &format!("{stem}.safetensors.index.json"), &index(&shards))?;
    }
    Ok(shards)
}

fn specs(base: &Checkpoint, steps: &IndexMap<String, Step>) -> Vec<TensorSpec> {
    let spec = |(name, step): (&String, &Step)| {
        let meta = base.get(name)?;
        let dtype = match step {
            Step::Merge { dtype, .. } | Step::Keep { dtype } => stored(*dtype),
            Step::Copy => meta.dtype,
        };
        Some(TensorSpec { name: name.clone(), dtype, shape: meta.shape.clone() })
    };
    steps.iter().filter_map(spec).collect()
}

fn copy(
    base: &Checkpoint,
    tensor: &TensorSpec,
    writer: &mut TensorWriter,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let (end, chunk) = (tensor.bytes(), 4 * SUM_CHUNK as u64);
    for start in (0..end).step_by(chunk as usize) {
        let range = start..end.min(start + chunk);
        progress.advance(range.end - range.start);
        writer.write(&base.read_bytes(&tensor.name, range)?)?;
    }
    Ok(())
}

/// One tensor on its way out.
struct Assembly<'a, B> {
    backend: &'a B,
    base: &'a Checkpoint,
    tensor: &'a TensorSpec,
    alpha: f64,
    beta: f64,
    dtype: Dtype,
}

impl<B: Backend> Assembly<'_, B> {
    async fn write(
        &self,
        deltas: &mut impl Deltas<B>,
        writer: &mut TensorWriter,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let elements: usize = self.tensor.shape.iter().product();
        for start in (0..elements).step_by(SUM_CHUNK) {
            let range = start..elements.min(start + SUM_CHUNK);
            writer.write(&self.chunk(deltas, range.clone()).await?)?;
            progress.advance((range.len() * self.dtype.size()) as u64);
        }
        Ok(())
    }

    async fn chunk(&self, deltas: &mut impl Deltas<B>, range: Range<usize>) -> Result<Vec<u8>, Error> {
        let name = &self.tensor.name;
        let base = base_row(self.backend, self.base, name, range.clone())?;
        let mut weights = deltas.read(name, range.clone(), &base).await?;
        assembly::assemble(self.backend, &base.values, &mut weights, self.alpha, self.beta)
            .map_err(Error::device(name))?;
        let bytes = self.backend.pack(&weights, self.dtype).await.map_err(Error::device(name))?;
        match first_not_finite(self.dtype, &bytes) {
            None => Ok(bytes),
            Some((index, value)) => {
                let index = range.start + index;
                Err(Error::Overflow { tensor: name.clone(), index, value, dtype: self.dtype })
            }
        }
    }
}
