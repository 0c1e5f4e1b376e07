//! Where merged deltas wait until all are known: in memory as far as the budget goes, else in a file; in the journal in any case,
//! if there is one; and, if they are to be kept, in a file of all of them.

use super::Error;
use crate::checkpoint::journal::{Ledger, Place, Written};
use crate::checkpoint::{self, DeltaMeta, DeltaPlace, DeltaWriter, Extent};
use crate::stage::{Behind, Times};
use crc32fast::Hasher;
use serde::Serialize;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Bytes copied at a time.
const CHUNK: usize = 4 << 20;

/// The deltas of a merge.
pub(super) struct Store {
    ledger: Ledger,
    names: HashSet<String>,
    /// A file of all, if they are kept.
    keep: Option<DeltaWriter>,
    writing: Behind<Write, checkpoint::Error>,
    held: HashMap<String, Vec<Piece>>,
    /// Where the first value is of those that are in the ledger.
    on_disk: HashMap<String, (Where, u64)>,
    room: u64,
    bytes: [u64; 2],
    unit: Unit,
}

/// The layers that are being put away.
#[derive(Default)]
struct Unit {
    /// Their place in the ledger, and how many bytes are there already.
    place: Option<(Place, u64)>,
    hold: bool,
}

/// Values in the ledger.
enum Where {
    Found(Extent),
    Written(Place),
}

/// What the thread that writes has to do.
enum Write {
    /// Values into the ledger, so many bytes behind their unit's beginning.
    Ledger { values: Arc<Vec<f32>>, place: Place, skip: u64 },
    /// Values into the file of all.
    Keep { values: Arc<Vec<f32>>, to: Vec<(DeltaPlace, Range<usize>)> },
    /// A unit's values are all written.
    Note { unit: String, place: Place, bytes: u64, said: Value },
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
    pub fn new(ledger: Ledger, tensors: &[(String, Vec<usize>)], room: u64, limit: u64) -> Store {
        let names = tensors.iter().map(|(name, _)| name.clone()).collect();
        let writing = Behind::new("spilling", limit, writer(ledger.clone()));
        Store {
            ledger,
            names,
            keep: None,
            writing,
            held: HashMap::new(),
            on_disk: HashMap::new(),
            room,
            bytes: [0; 2],
            unit: Unit::default(),
        }
    }

    /// A store without tensors, where nothing is merged.
    pub fn nothing() -> Store {
        Store::new(Ledger::forgetful(Path::new(".")), &[], 0, 0)
    }

    /// The same with a file of all of them in a folder, whose metadata is at most so long.
    pub fn kept(
        mut self,
        folder: &Path,
        tensors: Vec<(String, Vec<usize>)>,
        longest: &DeltaMeta,
    ) -> Result<Store, Error> {
        self.keep = Some(DeltaWriter::create(folder, tensors, longest)?);
        Ok(self)
    }

    /// Begins a unit of work, whose deltas have so many bytes in all.
    pub fn begin(&mut self, bytes: u64) -> Result<(), Error> {
        let hold = bytes <= self.room;
        let elsewhere = hold || self.keep.is_some(); // where they are found in this run
        let place = match self.ledger.is_listed() || !elsewhere {
            true => Some((self.ledger.reserve(bytes)?, 0)),
            false => None,
        };
        self.unit = Unit { place, hold };
        Ok(())
    }

    /// Takes deltas of the unit that lie one after the other in `values`.
    pub fn put(&mut self, values: Vec<f32>, deltas: &[Delta<'_>]) -> Result<(), Error> {
        let values = Arc::new(values);
        let bytes = 4 * values.len() as u64;
        if self.unit.hold {
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
        if !self.unit.hold || self.keep.is_some() {
            self.bytes[1] += bytes;
        }
        self.keep(&values, deltas)?;
        if let Some((place, skip)) = &mut self.unit.place {
            let mut at = *skip;
            for delta in deltas {
                let first = at - 4 * delta.first as u64; // pieces of a tensor follow each other
                self.on_disk.entry(delta.tensor.to_owned()).or_insert((Where::Written(place.clone()), first));
                at += 4 * delta.len as u64;
            }
            let write = Write::Ledger { values, place: place.clone(), skip: *skip };
            *skip = at;
            self.writing.push(write, bytes)?;
        }
        Ok(())
    }

    /// Ends the unit; in the ledger it is done, and so much is said of it.
    pub fn end(&mut self, unit: String, said: &impl Serialize) -> Result<(), Error> {
        if let Some((place, bytes)) = std::mem::take(&mut self.unit).place {
            let said = self.ledger.words(said)?;
            self.writing.push(Write::Note { unit, place, bytes, said }, 0)?;
        }
        Ok(())
    }

    /// Takes the deltas of a unit that was done by an earlier run.
    pub fn restore(&mut self, values: &Extent, deltas: &[Delta<'_>]) -> Result<(), Error> {
        let mut at = 0;
        for delta in deltas {
            self.on_disk.insert(delta.tensor.to_owned(), (Where::Found(values.clone()), at as u64));
            let copied = if self.keep.is_some() { delta.len } else { 0 };
            for first in (0..copied).step_by(CHUNK) {
                let len = CHUNK.min(delta.len - first);
                let piece = values.part(at + 4 * first, 4 * len).read()?;
                let values = Arc::new(bytemuck::pod_collect_to_vec(&piece));
                self.keep(&values, &[Delta { first, len, ..*delta }])?;
            }
            at += 4 * delta.len;
        }
        self.bytes[1] += at as u64;
        Ok(())
    }

    /// Puts deltas into the file of all, if there is one.
    fn keep(&mut self, values: &Arc<Vec<f32>>, deltas: &[Delta<'_>]) -> Result<(), Error> {
        let Some(file) = &self.keep else { return Ok(()) };
        let (mut at, mut to) = (0, Vec::with_capacity(deltas.len()));
        for delta in deltas {
            to.push((file.place(delta.tensor, delta.first)?, at..at + delta.len));
            at += delta.len;
        }
        self.writing.push(Write::Keep { values: Arc::clone(values), to }, 4 * values.len() as u64)?;
        Ok(())
    }

    /// Waits until everything is where it belongs. To be called before anything is asked for.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.writing.flush()?;
        Ok(self.ledger.sync_if_due()?)
    }

    /// Whether a tensor is one of the store's.
    pub fn has(&self, tensor: &str) -> bool {
        self.names.contains(tensor)
    }

    /// The values `range` of a tensor; none if it is not one of the store's.
    pub fn find(&self, tensor: &str, range: Range<usize>) -> Option<Result<Found<'_>, checkpoint::Error>> {
        if let Some(pieces) = self.held.get(tensor) {
            return Some(Ok(Found::InMemory(gather(pieces, range))));
        }
        if let Some((place, first)) = self.on_disk.get(tensor) {
            let (skip, bytes) = (first + 4 * range.start as u64, 4 * range.len());
            return Some(Ok(Found::OnDisk(match place {
                Where::Found(extent) => extent.part(skip as usize, bytes),
                Where::Written(place) => place.extent(skip, bytes),
            })));
        }
        let file = self.keep.as_ref().filter(|_| self.names.contains(tensor))?;
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

    /// The file of all, if they are kept.
    pub fn file(&self) -> Option<&DeltaWriter> {
        self.keep.as_ref()
    }

    /// Nothing but the file.
    pub fn into_file(self) -> Option<DeltaWriter> {
        self.keep
    }
}

/// Does what there is to write, and sums up the values of a unit on the way.
fn writer(ledger: Ledger) -> impl FnMut(Write) -> Result<(), checkpoint::Error> + Send + 'static {
    let mut hash = Hasher::new();
    move |write| match write {
        Write::Ledger { values, place, skip } => {
            let bytes = bytemuck::cast_slice(&values); // little-endian hosts only, as everywhere in this crate
            if ledger.is_listed() {
                hash.update(bytes);
            }
            place.write(bytes, skip)
        }
        Write::Keep { values, to } => {
            to.into_iter().try_for_each(|(place, range)| place.write(&values[range]))
        }
        Write::Note { unit, place, bytes, said } => {
            let crc32 = std::mem::replace(&mut hash, Hasher::new()).finalize();
            ledger.note(&unit, Some(&Written { place, bytes, crc32 }), &said)
        }
    }
}

/// A tensor's delta, or a piece of it; pieces come in order, with nothing of another tensor between.
#[derive(Clone, Copy)]
pub(super) struct Delta<'a> {
    pub tensor: &'a str,
    /// Place of the first value in the tensor.
    pub first: usize,
    /// Values here.
    pub len: usize,
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
