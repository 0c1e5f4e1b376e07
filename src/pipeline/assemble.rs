//! Second half of a merge: `W = W0 + alpha beta dW`, rounded once, streamed into shards.

use super::flow::Flow;
use super::outputs::write_json;
use super::reader::{Reader, Request};
use super::rounding::{self, Rounding};
use super::weights::{BaseValues, base_request, base_row};
use super::writer::Writer;
use super::{Error, Progress, shares};
use crate::backend::{Backend, Dtype, Shape};
use crate::checkpoint::journal::Ledger;
use crate::checkpoint::{
    self, Checkpoint, Shard, TensorSpec, TensorWriter, index, shards, slice_name, stem, stored,
};
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
pub(super) struct Files<'a> {
    /// Those that are finished.
    pub ledger: &'a Ledger,
    /// The folder of the output, from which the ledger names them.
    pub root: &'a Path,
    /// Which share of them is written, of how many; all if `None`.
    pub share: Option<(usize, usize)>,
    /// Bytes of one file.
    pub shard_size: u64,
    /// Whether even a single file gets an index, because the folder also holds tensors that are not the model's: loaders that
    /// read every `.safetensors` file of a folder go by the index where there is one.
    pub always_index: bool,
}

/// Writes the shards and, for several, their index. Files that the ledger has are left as they are.
pub(super) async fn write_model<B: Backend, D: Deltas<B>>(
    source: &Source<'_, B, D>,
    folder: &Path,
    files: &Files<'_>,
    flow: &mut Flow,
    progress: &mut dyn Progress,
) -> Result<usize, Error> {
    let stem = stem(source.base);
    let shards = shards(specs(source.base, source.steps), files.shard_size, stem);
    let name = |shard: &Shard| {
        let path = folder.join(&shard.file);
        path.strip_prefix(files.root).unwrap_or(&path).to_string_lossy().replace('\\', "/")
    };
    let bytes = |shard: &Shard| shard.tensors.iter().map(TensorSpec::bytes).sum::<u64>();
    let own = match files.share {
        Some((index, count)) => {
            let costs: Vec<f64> = shards.iter().map(|shard| bytes(shard) as f64).collect();
            shares::of(&costs, index, count)
        }
        None => 0..shards.len(),
    };
    let all = &shards;
    let shards = &shards[own];
    let before: Vec<Option<Vec<Rounding>>> =
        shards.iter().map(|shard| files.ledger.finished_file(files.root, &name(shard))).collect();
    let mut rounding = std::mem::take(&mut flow.rounding);
    flow.rounding = vec![Rounding::default(); rounding.len()];
    let pending =
        || shards.iter().zip(&before).filter(|(_, before)| before.is_none()).map(|(shard, _)| shard);
    let mut reader = Reader::ahead(flow, source.requests(pending()));
    let mut writer = Writer::new(flow, files.ledger.clone());
    let mut made = Ok(());
    for (shard, before) in shards.iter().zip(&before) {
        if let Some(before) = before {
            rounding::add(&mut rounding, before);
            progress.advance(bytes(shard));
            continue;
        }
        reader.rounding.fill(Rounding::default());
        let path = folder.join(&shard.file);
        if files.share.is_some() {
            remove_unfinished(&path)?;
        }
        made = source.make(shard, &path, &mut reader, &mut writer, progress).await;
        made = made.and_then(|()| {
            rounding::add(&mut rounding, &reader.rounding);
            writer.end(name(shard), files.ledger.words(&reader.rounding)?, progress)
        });
        if made.is_err() {
            break;
        }
    }
    // What could not be written comes before what failed later, while that waited.
    writer.flush(progress)?;
    made?;
    reader.finish(flow);
    flow.rounding = rounding;
    writer.finish(flow);
    if files.share.is_none() && (all.len() > 1 || files.always_index) {
        write_json(folder, &format!("{stem}.safetensors.index.json"), &index(all))?;
    }
    Ok(shards.len())
}

/// Removes what an earlier run of the same share did not finish.
fn remove_unfinished(path: &Path) -> Result<(), Error> {
    match crate::host::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(checkpoint::Error::io("remove", path)(e).into())
        }
        _ => Ok(()),
    }
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
        shard: &Shard,
        path: &Path,
        reader: &mut Reader<'_>,
        writer: &mut Writer,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        writer.begin(TensorWriter::create(path, &shard.tensors, &metadata)?, progress)?;
        for tensor in &shard.tensors {
            progress.layer(&tensor.name);
            for piece in self.pieces(tensor) {
                let step = self.step(&piece);
                for range in self.chunks(&piece, step) {
                    self.chunk(&piece.name, step, range, reader, writer, progress).await?;
                }
            }
        }
        Ok(())
    }

    /// What [`make`](Source::make) will read.
    fn requests<'s>(
        &'s self,
        shards: impl Iterator<Item = &'s Shard> + 's,
    ) -> impl Iterator<Item = Request> + 's {
        let pieces = shards.flat_map(|shard| &shard.tensors).flat_map(|tensor| self.pieces(tensor));
        pieces.flat_map(move |piece| {
            let step = self.step(&piece);
            self.chunks(&piece, step).flat_map(move |range| match step {
                Step::Merge { .. } => self.deltas.requests(&piece.name, range),
                Step::Keep { .. } => base_request(self.base, &piece.name, range).into_iter().collect(),
                Step::Copy => {
                    let bytes = self.base.bytes(&piece.name, range.start as u64..range.end as u64);
                    bytes.map(Request::other).into_iter().collect()
                }
            })
        })
    }

    /// A tensor of the output by what the base calls it: whole, or the matrices that it has of experts.
    fn pieces(&self, tensor: &TensorSpec) -> Vec<TensorSpec> {
        match (self.base.get(&tensor.name), &tensor.shape[..]) {
            (None, [count, shape @ ..]) => {
                let piece = |e| TensorSpec {
                    name: slice_name(&tensor.name, e),
                    shape: shape.to_vec(),
                    ..tensor.clone()
                };
                (0..*count).map(piece).collect()
            }
            _ => vec![tensor.clone()],
        }
    }

    fn step(&self, piece: &TensorSpec) -> Step {
        self.steps.get(&piece.name).copied().unwrap_or(Step::Copy)
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
        let bytes = assembly::assemble(backend, &base.values, &mut weights, (alpha, beta), dtype).await;
        let bytes = bytes.map_err(Error::device(name))?;
        writer.values(name, range.start, (dtype, bytes), progress)
    }
}

/// The tensors of the output.
fn specs(base: &Checkpoint, steps: &IndexMap<String, Step>) -> Vec<TensorSpec> {
    let dtype = |name: &str| match steps.get(name) {
        Some(Step::Merge { dtype, .. } | Step::Keep { dtype }) => Some(stored(*dtype)),
        _ => base.get(name).map(|meta| meta.dtype),
    };
    base.specs(steps.keys().map(String::as_str), dtype)
}
