//! Weights are read while the device works: the order of the reads is known, so a thread reads some way ahead.
//!
//! It also looks at every value once, for numbers that are none and for what rounding a file has seen.

use super::flow::Flow;
use super::rounding::Rounding;
use crate::backend::Dtype;
use crate::checkpoint::{self, Extent, sum_of_squared_ulps};
use crate::host::Instant;
use crate::stage::{Stage, Times};
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes to be read.
#[derive(Clone, Debug)]
pub(super) struct Request {
    extent: Extent,
    whose: Whose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Values of the base, which those of experts are compared with that come next.
    Base,
    /// Values of an expert, of which those count as rounded that are not the base's.
    Expert,
    /// Differences: all count.
    Delta,
    /// Nothing to be counted.
    Other,
}

impl Request {
    /// Values of the base.
    pub fn base(extent: Extent) -> Request {
        Request { extent, whose: Whose::Base }
    }

    /// Values of an expert, or what it differs by.
    pub fn expert(extent: Extent, is_delta: bool) -> Request {
        Request { extent, whose: if is_delta { Whose::Delta } else { Whose::Expert } }
    }

    /// Anything else.
    pub fn other(extent: Extent) -> Request {
        Request { extent, whose: Whose::Other }
    }

    /// How many.
    pub fn bytes(&self) -> u64 {
        self.extent.bytes() as u64
    }
}

/// Bytes that were read; their memory is used again.
#[derive(Clone, Debug)]
pub(super) struct Stored(Arc<Loan>);

impl Stored {
    /// Type of the values; that of float32 for raw bytes.
    pub fn dtype(&self) -> Dtype {
        self.0.dtype
    }
}

impl Deref for Stored {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.buffer[..self.0.len]
    }
}

/// What reading gave.
struct Reply {
    stored: Stored,
    squared_ulps: f64,
}

/// Reads; there is one on the thread, and one for what was not foreseen.
struct Hand {
    buffers: Arc<Mutex<Buffers>>,
    base: Option<Stored>,
}

impl Hand {
    fn read(&mut self, Request { extent, whose }: Request) -> Result<Reply, checkpoint::Error> {
        let len = extent.bytes();
        let mut buffer = lock(&self.buffers).take(len);
        let read = extent.read_into(&mut buffer[..len]);
        let dtype = extent.dtype().unwrap_or(Dtype::F32);
        let stored = Stored(Arc::new(Loan { buffers: Arc::clone(&self.buffers), buffer, len, dtype }));
        read?;
        let unchanged = self.base.as_ref().filter(|base| whose == Whose::Expert && base.dtype() == dtype);
        let squared_ulps = match whose {
            Whose::Expert | Whose::Delta => {
                sum_of_squared_ulps(dtype, &stored, unchanged.map(|base| &base[..]))
            }
            Whose::Base | Whose::Other => 0.0,
        };
        if whose == Whose::Base {
            self.base = Some(stored.clone());
        }
        Ok(Reply { stored, squared_ulps })
    }
}

/// Gives what is asked for, read ahead as far as it was foreseen, and counts the rounding of experts.
pub(super) struct Reader<'a> {
    /// By expert.
    pub rounding: Vec<Rounding>,
    ahead: Option<Ahead<'a>>,
    here: Hand,
    waited: Times,
    at_once: u64,
}

/// What is foreseen.
struct Ahead<'a> {
    stage: Stage<Request, Result<Reply, checkpoint::Error>>,
    /// Asked of the thread, oldest first, and the bytes of that.
    asked: VecDeque<Request>,
    asked_bytes: u64,
    limit: u64,
    taken_bytes: u64,
    /// Next in the plan, for which there was no room yet.
    next: Option<Request>,
    plan: Box<dyn Iterator<Item = Request> + 'a>,
}

impl<'a> Reader<'a> {
    /// A reader of what nobody foresaw.
    pub fn at_once(experts: usize) -> Self {
        let here = Hand { buffers: Buffers::new(0), base: None };
        let rounding = vec![Rounding::default(); experts];
        Reader { rounding, ahead: None, here, waited: Times::default(), at_once: 0 }
    }

    /// A reader of what a plan names, as far ahead as the limit allows; with none, when it is asked for.
    pub fn ahead(flow: &Flow, plan: impl Iterator<Item = Request> + 'a) -> Self {
        let limit = flow.limits.ahead;
        let buffers = Buffers::new(limit / 2);
        let mut reader = Reader::at_once(0);
        reader.rounding.clone_from(&flow.rounding);
        reader.here.buffers = Arc::clone(&buffers);
        if limit > 0 {
            let mut hand = Hand { buffers, base: None };
            let stage = Stage::beside("reading", move |request| hand.read(request));
            let plan = Box::new(plan);
            let (asked, asked_bytes, taken_bytes, next) = (VecDeque::new(), 0, 0, None);
            let mut ahead = Ahead { stage, asked, asked_bytes, limit, taken_bytes, next, plan };
            ahead.ask();
            reader.ahead = Some(ahead);
        }
        reader
    }

    /// Forgets what was foreseen, for another plan.
    pub fn restart(&mut self, plan: impl Iterator<Item = Request> + 'a) {
        if let Some(ahead) = &mut self.ahead {
            ahead.forget(ahead.asked.len());
            (ahead.next, ahead.plan) = (None, Box::new(plan));
            ahead.ask();
        }
    }

    /// Values of the base.
    pub fn base(&mut self, extent: Extent) -> Result<Stored, checkpoint::Error> {
        Ok(self.take(Request::base(extent), None)?.stored)
    }

    /// Values of an expert, or what it differs from the base by.
    pub fn expert(
        &mut self,
        extent: Extent,
        is_delta: bool,
        task: usize,
        base: &Stored,
    ) -> Result<Stored, checkpoint::Error> {
        let reply = self.take(Request::expert(extent, is_delta), Some(base))?;
        if let Some(rounding) = self.rounding.get_mut(task) {
            rounding.stored(reply.squared_ulps);
        }
        Ok(reply.stored)
    }

    /// Anything else.
    pub fn other(&mut self, extent: Extent) -> Result<Stored, checkpoint::Error> {
        Ok(self.take(Request::other(extent), None)?.stored)
    }

    fn take(&mut self, request: Request, base: Option<&Stored>) -> Result<Reply, checkpoint::Error> {
        if let Some(read) = self.ahead.as_mut().and_then(|ahead| ahead.take(&request)) {
            return read;
        }
        self.at_once += request.bytes();
        self.here.base = base.cloned();
        let started = Instant::now();
        let read = self.here.read(request);
        self.here.base = None;
        let spent = started.elapsed();
        self.waited += Times { busy: spent, waited: spent };
        read
    }

    /// Adds what was found to the run's.
    pub fn finish(self, flow: &mut Flow) {
        flow.rounding = self.rounding;
        flow.reading += self.waited;
        flow.at_once += self.at_once;
        if let Some(ahead) = self.ahead {
            flow.reading += ahead.stage.times();
            flow.ahead += ahead.taken_bytes;
        }
    }
}

impl Ahead<'_> {
    /// Asks the thread for as much as there is room for.
    fn ask(&mut self) {
        while let Some(request) = self.next.take().or_else(|| self.plan.next()) {
            if self.asked_bytes + request.bytes() > self.limit {
                self.next = Some(request);
                return;
            }
            self.asked_bytes += request.bytes();
            self.asked.push_back(request.clone());
            self.stage.push(request);
        }
    }

    /// What was asked for before, or none if this was not. What lies before it in the plan was not wanted.
    fn take(&mut self, wanted: &Request) -> Option<Result<Reply, checkpoint::Error>> {
        let is_wanted =
            |request: &Request| request.whose == wanted.whose && request.extent.is(&wanted.extent);
        let Some(place) = self.asked.iter().position(is_wanted) else {
            if self.next.as_ref().is_some_and(is_wanted) {
                self.next = None; // too large to be read ahead
            }
            self.ask();
            return None;
        };
        self.forget(place);
        let reply = self.next_reply();
        self.taken_bytes += wanted.bytes();
        self.ask();
        reply
    }

    /// Drops the oldest replies.
    fn forget(&mut self, count: usize) {
        (0..count).for_each(|_| drop(self.next_reply()));
    }

    fn next_reply(&mut self) -> Option<Result<Reply, checkpoint::Error>> {
        self.asked_bytes -= self.asked.pop_front().map_or(0, |request| request.bytes());
        self.stage.next()
    }
}

/// Memory for what is read. A fresh page costs the system more time than it takes to fill one.
struct Buffers {
    spare: VecDeque<Vec<u8>>,
    /// Bytes of those: what is lent out is bounded by what is read ahead.
    bytes: u64,
    limit: u64,
}

/// A buffer may be so many times as long as what it is for: the weights of a block differ by less than that.
const WASTE: usize = 4;

impl Buffers {
    fn new(limit: u64) -> Arc<Mutex<Buffers>> {
        Arc::new(Mutex::new(Buffers { spare: VecDeque::new(), bytes: 0, limit }))
    }

    /// `len` bytes or more, which hold anything.
    fn take(&mut self, len: usize) -> Vec<u8> {
        let fits = |buffer: &Vec<u8>| (len..=WASTE * len).contains(&buffer.len());
        let fitting = self.spare.iter().enumerate().filter(|(_, buffer)| fits(buffer));
        if let Some((place, _)) = fitting.min_by_key(|(_, buffer)| buffer.len())
            && let Some(buffer) = self.spare.remove(place)
        {
            self.bytes -= buffer.len() as u64;
            return buffer;
        }
        vec![0; len]
    }

    /// Keeps it for the next; frees what was idle longest, as far as there is more than allowed.
    fn give_back(&mut self, buffer: Vec<u8>) {
        self.bytes += buffer.len() as u64;
        self.spare.push_back(buffer);
        while self.bytes > self.limit
            && let Some(buffer) = self.spare.pop_front()
        {
            self.bytes -= buffer.len() as u64;
        }
    }
}

/// A buffer that goes back when nobody needs it.
#[derive(Debug)]
struct Loan {
    buffers: Arc<Mutex<Buffers>>,
    buffer: Vec<u8>,
    len: usize,
    dtype: Dtype,
}

impl Drop for Loan {
    fn drop(&mut self) {
        lock(&self.buffers).give_back(std::mem::take(&mut self.buffer));
    }
}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes in buffers", self.bytes)
    }
}

fn lock(buffers: &Mutex<Buffers>) -> MutexGuard<'_, Buffers> {
    buffers.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, Error, Stored as Type, TensorSpec, TensorWriter};
    use crate::pipeline::flow::Limits;
    use std::collections::BTreeMap;
    use tempfile::TempDir;

    const VALUES: usize = 1000;

    /// A model of tensors `0`, `1`, ..., each of one number in all places.
    fn model(numbers: &[f32]) -> (TempDir, Checkpoint) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let spec = |i: usize| TensorSpec { name: i.to_string(), dtype: Type::F32, shape: vec![VALUES] };
        let specs: Vec<TensorSpec> = (0..numbers.len()).map(spec).collect();
        let mut file = TensorWriter::create(&path, &specs, &BTreeMap::new()).unwrap();
        numbers.iter().for_each(|&n| file.write(bytemuck::cast_slice(&[n; VALUES])).unwrap());
        file.finish().unwrap();
        let model = Checkpoint::open(&path).unwrap();
        (folder, model)
    }

    fn place(model: &Checkpoint, tensor: usize) -> Extent {
        model.values(&tensor.to_string(), 0..VALUES).unwrap()
    }

    fn number(stored: &Stored) -> f32 {
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(stored);
        assert!(values.len() == VALUES && values.iter().all(|v| *v == values[0]));
        values[0]
    }

    fn flow(ahead: usize) -> Flow {
        Flow::new(Limits { ahead: ahead as u64, behind: 0, deltas: 0 }, 0)
    }

    fn plan<'a>(model: &'a Checkpoint, order: &'a [usize]) -> impl Iterator<Item = Request> + 'a {
        order.iter().map(|&tensor| Request::other(place(model, tensor)))
    }

    #[test]
    fn tensors_are_read_before_they_are_asked_for_and_no_further_than_the_limit() {
        let (_folder, model) = model(&[0.0, 1.0, 2.0, 3.0]);
        let mut flow = flow(2 * 4 * VALUES);
        let mut reader = Reader::ahead(&flow, plan(&model, &[0, 1, 2, 3]));
        let asked = |reader: &Reader<'_>| reader.ahead.as_ref().unwrap().asked.len();
        for (tensor, left) in [(0, 2), (1, 2), (2, 1), (3, 0)] {
            assert_eq!(number(&reader.other(place(&model, tensor)).unwrap()), tensor as f32);
            assert_eq!(asked(&reader), left);
        }
        reader.finish(&mut flow);
        assert_eq!((flow.ahead, flow.at_once), (4 * 4 * VALUES as u64, 0));
    }

    #[test]
    fn what_was_not_foreseen_is_read_all_the_same() {
        let (_folder, model) = model(&[0.0, 1.0, 2.0, 3.0]);
        let mut flow = flow(1 << 20);
        let mut reader = Reader::ahead(&flow, plan(&model, &[0, 1, 2]));
        // one that is not in the plan, and one that is passed over
        for tensor in [3, 0, 2, 1] {
            assert_eq!(number(&reader.other(place(&model, tensor)).unwrap()), tensor as f32);
        }
        reader.restart(plan(&model, &[1, 1]));
        for tensor in [1, 1] {
            assert_eq!(number(&reader.other(place(&model, tensor)).unwrap()), tensor as f32);
        }
        reader.finish(&mut flow);
        assert_eq!((flow.ahead, flow.at_once), (4 * 4 * VALUES as u64, 2 * 4 * VALUES as u64));
    }

    #[test]
    fn an_error_of_the_thread_names_the_tensor_where_that_is_used() {
        let (_folder, model) = model(&[0.0, f32::NAN, 2.0]);
        for limit in [1 << 20, 0] {
            let mut reader = Reader::ahead(&flow(limit), plan(&model, &[0, 1, 2]));
            assert!(reader.other(place(&model, 0)).is_ok());
            let error = reader.other(place(&model, 1)).unwrap_err();
            assert!(
                matches!(&error, Error::NotFinite { tensor, index: 0, value: "NaN", .. } if tensor == "1")
            );
            assert!(error.to_string().contains("model.safetensors"), "{error}");
            assert!(reader.other(place(&model, 2)).is_ok());
        }
    }

    #[test]
    fn a_file_that_changes_is_not_read_on() {
        let (_folder, model) = model(&[0.0, 1.0]);
        std::fs::write(model.path(), "another file").unwrap();
        for limit in [1 << 20, 0] {
            let mut reader = Reader::ahead(&flow(limit), plan(&model, &[0]));
            assert!(matches!(reader.other(place(&model, 0)), Err(Error::Changed { .. })));
        }
    }

    #[test]
    fn memory_is_used_again_and_no_more_is_kept_than_allowed() {
        let (_folder, model) = model(&[0.0, 1.0, 2.0, 3.0]);
        let limit = 2 * 4 * VALUES;
        let mut reader = Reader::ahead(&flow(limit), plan(&model, &[0, 1, 2, 3]));
        for tensor in 0..4 {
            reader.other(place(&model, tensor)).unwrap();
        }
        let buffers = lock(&reader.here.buffers);
        assert!(buffers.bytes <= limit as u64 && buffers.spare.len() <= 2, "{buffers:?}");
    }
}
