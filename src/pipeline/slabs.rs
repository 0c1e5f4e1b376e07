//! Tensors that are merged element by element, a slab at a time. What a method has to learn of a whole tensor it learns first: of
//! one slab while that is at hand, of several by reading them as often as it takes.

use super::reader::{Reader, Request};
use super::weights::{BaseValues, base_row, delta_rows, row_requests};
use super::{Error, Job};
use crate::backend::{self, Backend, Shape, Tensor};
use crate::checkpoint::TensorMeta;
use crate::checkpoint::journal::Ledger;
use crate::method::table::Kind;
use crate::method::ties::OfModel;
use crate::method::{Learned, Slab, Slabs, Streamed};
use crate::plan::{Role, SUM_CHUNK};
use crate::recipe::Place;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// Values of all models in a slab of a method that looks at a tensor before it begins.
const LARGEST: usize = 32 << 20;

/// How a tensor is cut into slabs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cuts {
    elements: usize,
    /// Of the last axis.
    cols: usize,
    size: usize,
    by_rows: bool,
}

impl Cuts {
    /// Of a tensor of the base, or one that is not there.
    pub fn new<B: Backend>(job: &Job<'_, B>, tensor: &str, by_rows: bool) -> Cuts {
        let shape = job.family.base.get(tensor).map_or(&[][..], |meta: &TensorMeta| &meta.shape);
        let elements: usize = shape.iter().product();
        let cols = shape.last().copied().unwrap_or(1).max(1);
        let models = job.family.experts.len().max(1);
        let fits = usize::try_from(job.backend.max_tensor_bytes() / 4 / models as u64).unwrap_or(usize::MAX);
        // what is read again for every look had better be at hand, as the layers are that other methods decompose
        let most = if passes(job) > 0 { (LARGEST / models).max(SUM_CHUNK) } else { SUM_CHUNK };
        let size = most.min(fits).max(1);
        let size = if by_rows { (size / cols).max(1) * cols } else { size };
        Cuts { elements, cols, size, by_rows }
    }

    /// Values of a slab, but for the last.
    pub fn size(&self) -> usize {
        self.size
    }

    fn count(&self) -> usize {
        self.elements.div_ceil(self.size)
    }

    fn range(&self, index: usize) -> Range<usize> {
        index * self.size..self.elements.min((index + 1) * self.size)
    }

    fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.count()).map(|index| self.range(index))
    }

    /// Values as a slab has them.
    fn shaped<T: Tensor>(&self, x: T) -> backend::Result<T> {
        let Shape { batch, cols, .. } = x.shape();
        match self.by_rows {
            true => x.reshape(Shape::new(batch, cols / self.cols, self.cols)),
            false => Ok(x),
        }
    }
}

/// What goes wrong while a method looks at slabs.
enum Trouble {
    Device(backend::Error),
    Other(Error),
}

impl From<backend::Error> for Trouble {
    fn from(error: backend::Error) -> Trouble {
        Trouble::Device(error)
    }
}

impl Trouble {
    fn at(self, tensor: &str) -> Error {
        match self {
            Trouble::Device(source) => Error::device(tensor)(source),
            Trouble::Other(error) => error,
        }
    }
}

/// Slabs of one tensor after another, read when they are asked for.
struct Read<'a, 'r, B: Backend> {
    job: &'a Job<'a, B>,
    reader: &'a mut Reader<'r>,
    tensors: Vec<(&'a str, Cuts)>,
    now: Option<(usize, Slab<B::Tensor>)>,
}

impl<B: Backend> Read<'_, '_, B> {
    fn find(&self, index: usize) -> Option<(&str, &Cuts, Range<usize>)> {
        let mut index = index;
        for (tensor, cuts) in &self.tensors {
            if index < cuts.count() {
                return Some((tensor, cuts, cuts.range(index)));
            }
            index -= cuts.count();
        }
        None
    }
}

impl<B: Backend> Slabs<B> for Read<'_, '_, B> {
    type Error = Trouble;

    fn count(&self) -> usize {
        self.tensors.iter().map(|(_, cuts)| cuts.count()).sum()
    }

    fn elements(&self) -> usize {
        self.tensors.iter().map(|(_, cuts)| cuts.elements).sum()
    }

    async fn slab(&mut self, index: usize) -> Result<&Slab<B::Tensor>, Trouble> {
        if self.now.as_ref().is_none_or(|(now, _)| *now != index) {
            self.now = None; // its memory is free again
            let Some((tensor, cuts, range)) = self.find(index) else {
                return Err(Trouble::Device(backend::Error::Internal("no such slab".to_owned())));
            };
            let (tensor, cuts) = (tensor.to_owned(), cuts.clone());
            let job = self.job;
            let base = base_row(job.backend, self.reader, &job.family.base, &tensor, range.clone());
            let base = base.map_err(Trouble::Other)?;
            let slab = slab(job, self.reader, &tensor, range, &cuts, &base).map_err(Trouble::Other)?;
            self.now = Some((index, slab));
        }
        match &self.now {
            Some((_, slab)) => Ok(slab),
            None => Err(Trouble::Device(backend::Error::Internal("a slab is gone".to_owned()))),
        }
    }
}

/// The only slab of a tensor, at hand.
struct Only<T>(Slab<T>);

impl<B: Backend> Slabs<B> for Only<B::Tensor> {
    type Error = backend::Error;

    fn count(&self) -> usize {
        1
    }

    fn elements(&self) -> usize {
        self.0.base.shape().len()
    }

    async fn slab(&mut self, _: usize) -> backend::Result<&Slab<B::Tensor>> {
        Ok(&self.0)
    }
}

/// A slab of all experts; `base` holds the same values of the base.
fn slab<B: Backend>(
    job: &Job<'_, B>,
    reader: &mut Reader<'_>,
    tensor: &str,
    range: Range<usize>,
    cuts: &Cuts,
    base: &BaseValues<B::Tensor>,
) -> Result<Slab<B::Tensor>, Error> {
    let (backend, experts) = (job.backend, &job.family.experts);
    let device = || Error::device(tensor);
    let deltas = delta_rows(backend, reader, experts, tensor, range.clone(), base)?;
    let own = match cuts.by_rows {
        true => Rc::new(backend.duplicate(&base.values).and_then(|own| cuts.shaped(own)).map_err(device())?),
        false => Rc::clone(&base.values),
    };
    Ok(Slab { base: own, deltas: cuts.shaped(deltas).map_err(device())?, first: range.start })
}

/// A tensor, how it is merged, and what was learnt of it.
type Known = (String, Rc<Streamed>, Rc<Learned>);

/// Merges tensors element by element, one after the other.
pub(super) struct Merger<'a, B> {
    job: &'a Job<'a, B>,
    /// What was learnt of the tensor that is being merged.
    now: RefCell<Option<Known>>,
}

impl<'a, B: Backend> Merger<'a, B> {
    pub fn new(job: &'a Job<'a, B>) -> Self {
        Merger { job, now: RefCell::new(None) }
    }

    fn cuts(&self, tensor: &str) -> Cuts {
        let by_rows = self.job.streamed(tensor).is_ok_and(|method| method.by_rows());
        Cuts::new(self.job, tensor, by_rows)
    }

    /// Values of a slab.
    pub fn size(&self, tensor: &str) -> usize {
        self.cuts(tensor).size()
    }

    /// The parts of a tensor, in order.
    pub fn ranges(&self, tensor: &str) -> Vec<Range<usize>> {
        self.cuts(tensor).ranges().collect()
    }

    /// What is read for a part: the base's values, and what the method reads to learn, if the tensor has several.
    pub fn requests(&self, tensor: &str, range: Range<usize>) -> Vec<Request> {
        let cuts = self.cuts(tensor);
        let mut requests = row_requests(self.job.family, tensor, range.clone());
        if range.start == 0 && cuts.count() > 1 {
            let of_all = |_| {
                let ranges = cuts.ranges();
                ranges.flat_map(|range| row_requests(self.job.family, tensor, range)).collect::<Vec<_>>()
            };
            let learning = (0..passes(self.job)).flat_map(of_all);
            // the base's first values once more, which the experts' that come then are compared with
            let learning: Vec<Request> = learning.chain(requests.first().cloned()).collect();
            requests.splice(1.min(requests.len())..1.min(requests.len()), learning);
        }
        requests
    }

    /// The merged delta of a part, as one row; parts come in order.
    pub async fn merge(
        &self,
        reader: &mut Reader<'_>,
        tensor: &str,
        range: Range<usize>,
        base: &BaseValues<B::Tensor>,
    ) -> Result<B::Tensor, Error> {
        let (job, backend) = (self.job, self.job.backend);
        let device = || Error::device(tensor);
        let known = self
            .now
            .borrow()
            .as_ref()
            .filter(|(name, ..)| name == tensor && range.start > 0)
            .map(|(_, method, learned)| (Rc::clone(method), Rc::clone(learned)));
        let method = match &known {
            Some((method, _)) => Rc::clone(method),
            None => Rc::new(job.streamed(tensor)?),
        };
        let cuts = Cuts::new(job, tensor, method.by_rows());
        let (slab, learned) = match known {
            Some((_, learned)) => (slab(job, reader, tensor, range.clone(), &cuts, base)?, learned),
            None if cuts.count() > 1 => {
                let before = reader.rounding.clone(); // what is read again is not counted again
                let tensors = vec![(tensor, cuts.clone())];
                let mut slabs = Read { job, reader: &mut *reader, tensors, now: None };
                let learned =
                    method.learn(backend, &mut slabs).await.map_err(|trouble| trouble.at(tensor))?;
                drop(slabs);
                reader.rounding = before;
                (slab(job, reader, tensor, range.clone(), &cuts, base)?, Rc::new(learned))
            }
            None => {
                let mut only = Only(slab(job, reader, tensor, range.clone(), &cuts, base)?);
                let learned = method.learn::<B, _>(backend, &mut only).await.map_err(device())?;
                (only.0, Rc::new(learned))
            }
        };
        if cuts.count() > 1 {
            *self.now.borrow_mut() = Some((tensor.to_owned(), Rc::clone(&method), Rc::clone(&learned)));
        }
        let norms = backend.frobenius_norms(&slab.deltas).map_err(device())?;
        // one wait for all experts
        let norms = backend.download(&norms).await.map_err(device())?;
        for (rounding, norm) in reader.rounding.iter_mut().zip(norms) {
            rounding.delta(norm.into());
        }
        let merged = method.apply(backend, &learned, slab).await.map_err(device())?;
        merged.reshape(Shape::matrix(1, range.len())).map_err(device())
    }
}

/// How often the method reads a tensor of several slabs before its first value is known.
fn passes<B>(job: &Job<'_, B>) -> usize {
    match job.recipe.method.elementwise().map(|tabled| (tabled.description.kind, job.of_model.is_some())) {
        Some((Kind::Elementwise { passes }, false)) => passes,
        _ => 0,
    }
}

/// Its unit of work in the ledger.
const LEARNED: &str = "learned";

/// What `ties` with `scope: model` knows of all tensors together; none for any other method.
pub(super) async fn of_model<B: Backend>(
    job: &Job<'_, B>,
    ledger: &Ledger,
    reader: &mut Reader<'_>,
) -> Result<Option<Rc<OfModel>>, Error> {
    let Some(tabled) = job.recipe.method.elementwise() else { return Ok(None) };
    let values = job.recipe.values(tabled, "", Place::default());
    if values.word("scope") != "model" {
        return Ok(None);
    }
    if let Some((learned, _)) = ledger.done(LEARNED) {
        return Ok(Some(Rc::new(learned)));
    }
    let merged =
        job.plan.layers.iter().filter(|layer| layer.role == Role::Sum).flat_map(|layer| &layer.parts);
    let tensors = merged.map(|part| (part.name.as_str(), Cuts::new(job, &part.name, false))).collect();
    let mut slabs = Read { job, reader, tensors, now: None };
    let learned = OfModel::learn(job.backend, &mut slabs, &values.of_models("density")).await;
    let learned = learned.map_err(|trouble| trouble.at("all tensors"))?;
    ledger.note(LEARNED, None, &learned)?;
    Ok(Some(Rc::new(learned)))
}
