//! Second half of a merge: `W = W0 + alpha beta dW`, rounded once, streamed into shards.

use super::flow::Flow;
use super::outputs::write_json;
use super::reader::{Reader, Request};
use super::weights::{BaseValues, base_request, base_row};
use super::writer::Writer;
use super::{Error, Progress};
use crate::backend::{Backend, Dtype, Shape};
use crate::checkpoint::{Checkpoint, Shard, TensorSpec, TensorWriter, index, shards, stem, stored};
use crate::method::assembly;
use crate::plan::SUM_CHUNK;
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Where the merged deltas come from.
pub(super) trait Deltas<B: Backend> {
    /// How many values of a tensor are asked for at a time.
    fn chunk(&self, tensor: &str) -> usize;

    /// What is read for the values `range` of a tensor, those of the base first.
    fn requests(&self, tensor: &str, range: Range<usize>) -> Vec<Request>;

    /// `dW` of the values `range` of a tensor, as one row; `base` holds the same values of the base.
    async fn read(
        &self,
        reader: &mut Reader<'_>,
        tensor: &str,
        range: Range<usize>,
        base: &BaseValues<B::Tensor>,
    ) -> Result<B::Tensor, Error>;
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
pub(super) async fn write_model<B: Backend, D: Deltas<B>>(
    source: &Source<'_, B, D>,
    folder: &Path,
    files: &Files,
    flow: &mut Flow,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let stem = stem(source.base);
    let shards = shards(specs(source.base, source.steps), files.shard_size, stem);
    let mut reader = Reader::ahead(flow, source.requests(&shards));
    let mut writer = Writer::new(flow);
    let made = source.make(&shards, folder, &mut reader, &mut writer, progress).await;
    // What could not be written comes before what failed later, while that waited.
    writer.flush(progress)?;
    made?;
    reader.finish(flow);
    writer.finish(flow);
    if shards.len() > 1 || files.always_index {
        write_json(folder, &format!("{stem}.safetensors.index.json"), &index(&shards))?;
    }
    Ok(())
}

/// What a model is made of.
pub(super) struct Source<'a, B, D> {
    pub backend: &'a B,
    pub base: &'a Checkpoint,
    /// Tensor by tensor.
    pub steps: &'a IndexMap<String, Step>,
    pub deltas: &'a D,
}

impl<B: Backend, D: Deltas<B>> Source<'_, B, D> {
    async fn make(
        &self,
        shards: &[Shard],
        folder: &Path,
        reader: &mut Reader<'_>,
        writer: &mut Writer,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        for shard in shards {
            let file = TensorWriter::create(&folder.join(&shard.file), &shard.tensors, &metadata)?;
            writer.begin(file, progress)?;
            for tensor in &shard.tensors {
                progress.layer(&tensor.name);
                let step = self.steps.get(&tensor.name).copied().unwrap_or(Step::Copy);
                for range in self.chunks(tensor, step) {
                    self.chunk(&tensor.name, step, range, reader, writer, progress).await?;
                }
            }
            writer.end(progress)?;
        }
        Ok(())
    }

    /// What [`make`](Source::make) will read.
    fn requests<'s>(&'s self, shards: &'s [Shard]) -> impl Iterator<Item = Request> + 's {
        shards.iter().flat_map(|shard| &shard.tensors).flat_map(move |tensor| {
            let step = self.steps.get(&tensor.name).copied().unwrap_or(Step::Copy);
            self.chunks(tensor, step).flat_map(move |range| match step {
                Step::Merge { .. } => self.deltas.requests(&tensor.name, range),
                Step::Keep { .. } => base_request(self.base, &tensor.name, range).into_iter().collect(),
                Step::Copy => {
                    let bytes = self.base.bytes(&tensor.name, range.start as u64..range.end as u64);
                    bytes.map(Request::other).into_iter().collect()
                }
            })
        })
    }

    /// The pieces in which a tensor is made: of its values, or of its bytes where it is copied.
    fn chunks(&self, tensor: &TensorSpec, step: Step) -> impl Iterator<Item = Range<usize>> + use<B, D> {
        let values = || tensor.shape.iter().product();
        let (end, chunk) = match step {
            Step::Copy => (tensor.bytes() as usize, 4 * SUM_CHUNK),
            Step::Keep { .. } => (values(), SUM_CHUNK),
            Step::Merge { .. } => (values(), self.deltas.chunk(&tensor.name)),
        };
        (0..end).step_by(chunk.max(1)).map(move |start| start..end.min(start + chunk))
    }

    async fn chunk(
        &self,
        name: &str,
        step: Step,
        range: Range<usize>,
        reader: &mut Reader<'_>,
        writer: &mut Writer,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let (alpha, beta, dtype) = match step {
            Step::Merge { alpha, beta, dtype } => (alpha, beta, dtype),
            Step::Keep { dtype } => (0.0, 0.0, dtype),
            Step::Copy => {
                let bytes = self.base.bytes(name, range.start as u64..range.end as u64)?;
                return writer.raw(reader.other(bytes)?, progress);
            }
        };
        let backend = self.backend;
        let base = base_row(backend, reader, self.base, name, range.clone())?;
        let mut weights = match step {
            Step::Merge { .. } => self.deltas.read(reader, name, range.clone(), &base).await?,
            _ => backend.zeros(Shape::matrix(1, range.len())).map_err(Error::device(name))?,
        };
        assembly::assemble(backend, &base.values, &mut weights, alpha, beta).map_err(Error::device(name))?;
        let bytes = backend.pack(&weights, dtype).await.map_err(Error::device(name))?;
        writer.values(name, range.start, (dtype, bytes), progress)
    }
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
