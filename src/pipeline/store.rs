//! Merged deltas between the two halves of a merge: in memory as far as the budget goes, else in a file, and in a file that is
//! kept.

use super::Error;
use crate::checkpoint::{self, DeltaMeta, DeltaPlace, DeltaWriter, Extent};
use crate::stage::{Behind, Times};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Merged deltas.
pub(super) struct Store {
    folder: PathBuf,
    tensors: Vec<(String, Vec<usize>)>,
    names: HashSet<String>,
    /// Made when the first delta does not fit into memory, or at once if it is kept.
    file: Option<DeltaWriter>,
    kept: bool,
    writing: Behind<Write, checkpoint::Error>,
    held: HashMap<String, Vec<Piece>>,
    room: u64,
    bytes: [u64; 2],
}

/// Values to be written.
struct Write {
    values: Arc<Vec<f32>>,
    to: Vec<(DeltaPlace, Range<usize>)>,
}

/// Values of a tensor, from `first` on.
struct Piece {
    first: usize,
    values: Arc<Vec<f32>>,
    range: Range<usize>,
}

/// Deltas that were asked for.
pub(super) enum Found<'a> {
    InMemory(Cow<'a, [f32]>),
    /// As little-endian f32.
    OnDisk(Extent),
}

impl Store {
    /// A store for these tensors, of which as many bytes stay in memory and wait to be written.
    pub fn new(folder: PathBuf, tensors: Vec<(String, Vec<usize>)>, room: u64, limit: u64) -> Store {
        let write = |Write { values, to }: Write| {
            to.into_iter().try_for_each(|(place, range)| place.write(&values[range]))
        };
        let writing = Behind::new("spilling", limit, write);
        let names = tensors.iter().map(|(name, _)| name.clone()).collect();
        let (file, kept, held, bytes) = (None, false, HashMap::new(), [0; 2]);
        Store { folder, tensors, names, file, kept, writing, held, room, bytes }
    }

    /// The same with a file of all of them, whose metadata is at most so long.
    pub fn kept(mut self, longest: &DeltaMeta) -> Result<Store, Error> {
        self.file = Some(DeltaWriter::create(&self.folder, self.tensors.clone(), longest)?);
        self.kept = true;
        Ok(self)
    }

    /// Takes deltas that lie one after the other in `values`.
    pub fn put(&mut self, values: Vec<f32>, deltas: &[Delta<'_>]) -> Result<(), Error> {
        let values = Arc::new(values);
        let bytes = 4 * values.len() as u64;
        // a tensor that comes in pieces stays where it began
        let begun = deltas.first().is_some_and(|delta| delta.first > 0);
        let hold = match deltas.first() {
            Some(delta) if begun => self.held.contains_key(delta.tensor),
            _ => deltas.iter().map(|delta| 4 * delta.whole as u64).sum::<u64>() <= self.room,
        };
        if hold {
            self.room = self.room.saturating_sub(bytes);
            self.bytes[0] += bytes;
            let mut at = 0;
            for delta in deltas {
                let range = at..at + delta.len;
                let piece = Piece { first: delta.first, values: Arc::clone(&values), range };
                self.held.entry(delta.tensor.to_owned()).or_default().push(piece);
                at += delta.len;
            }
        }
        if self.kept || !hold {
            self.bytes[1] += bytes;
            self.write(values, deltas)?;
        }
        Ok(())
    }

    fn write(&mut self, values: Arc<Vec<f32>>, deltas: &[Delta<'_>]) -> Result<(), Error> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                none.insert(DeltaWriter::create(&self.folder, self.tensors.clone(), &DeltaMeta::default())?)
            }
        };
        let (mut at, mut to) = (0, Vec::with_capacity(deltas.len()));
        for delta in deltas {
            to.push((file.place(delta.tensor, delta.first)?, at..at + delta.len));
            at += delta.len;
        }
        let bytes = 4 * values.len() as u64;
        self.writing.push(Write { values, to }, bytes)?;
        Ok(())
    }

    /// Waits until everything is where it belongs. To be called before anything is asked for.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.writing.flush()?;
        Ok(())
    }

    /// Whether a tensor is one of the store's.
    pub fn has(&self, tensor: &str) -> bool {
        self.held.contains_key(tensor) || self.file.is_some() && self.names.contains(tensor)
    }

    /// The values `range` of a tensor; none if it is not one of the store's.
    pub fn find(&self, tensor: &str, range: Range<usize>) -> Option<Result<Found<'_>, checkpoint::Error>> {
        if let Some(pieces) = self.held.get(tensor) {
            return Some(Ok(Found::InMemory(gather(pieces, range))));
        }
        let file = self.file.as_ref().filter(|_| self.names.contains(tensor))?;
        Some(file.bytes(tensor, range).map(Found::OnDisk))
    }

    /// Bytes in memory, and on disk.
    pub fn bytes(&self) -> [u64; 2] {
        self.bytes
    }

    /// What writing has cost.
    pub fn times(&self) -> Times {
        self.writing.times()
    }

    /// The file, if there is one.
    pub fn file(&self) -> Option<&DeltaWriter> {
        self.file.as_ref()
    }

    /// Nothing but the file.
    pub fn into_file(self) -> Option<DeltaWriter> {
        self.file
    }
}

/// A tensor's delta, or a piece of it; pieces come in order, with nothing of another tensor between.
pub(super) struct Delta<'a> {
    pub tensor: &'a str,
    /// Place of the first value in the tensor.
    pub first: usize,
    /// Values here, and in the whole tensor.
    pub len: usize,
    pub whole: usize,
}

/// Values that lie in pieces.
fn gather(pieces: &[Piece], range: Range<usize>) -> Cow<'_, [f32]> {
    let within = |piece: &Piece| {
        let end = piece.first + piece.range.len();
        let (from, to) = (range.start.max(piece.first), range.end.min(end));
        (from < to).then(|| piece.range.start + from - piece.first..piece.range.start + to - piece.first)
    };
    let mut found = pieces.iter().filter_map(|piece| Some(&piece.values[within(piece)?]));
    match (found.next(), found.next()) {
        (None, _) => Cow::Borrowed(&[]),
        (Some(only), None) => Cow::Borrowed(only),
        (Some(first), Some(second)) => {
            let mut all = [first, second].concat();
            found.for_each(|values| all.extend(values));
            Cow::Owned(all)
        }
    }
}
