//! The router in a forward pass.

use super::experts::Experts;
use super::groups::Groups;
use super::{Decisions, experts};
use crate::backend::layers::Layers;
use crate::backend::{Shape, Tensor};
use crate::data;
use crate::method::esm_plus::{add_wide, cosine_scores, narrow, route};
use crate::model::{Part, Result, Tap};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// How a sample's expert is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// In each layer the one whose prototype has the largest cosine with the mean of the sample's tokens.
    Prototype,
    /// This one everywhere: the task is given.
    Oracle(usize),
}

/// Chooses experts and adds what they restore, `y += (x A_t^T) B_t^T`, while samples pass a model.
pub struct Router<'a, B: Layers> {
    backend: &'a B,
    experts: &'a Experts,
    choice: Choice,
    /// Factors and prototypes of the block being passed, by weight.
    a: HashMap<String, B::Tensor>,
    b: HashMap<String, B::Tensor>,
    prototypes: HashMap<String, B::Tensor>,
    /// What has entered layers and not left them yet, by weight.
    entered: HashMap<String, Rc<Entered<B>>>,
    decisions: Decisions,
    passed: HashSet<String>,
}

/// Tokens on their way through an expert.
struct Entered<B: Layers> {
    groups: Rc<Groups>,
    /// `x A_t^T` for each group.
    thin: Vec<B::Tensor>,
}

impl<'a, B: Layers> Router<'a, B> {
    /// A router that has seen nothing.
    pub fn new(backend: &'a B, experts: &'a Experts, choice: Choice) -> Self {
        Router {
            backend,
            experts,
            choice,
            a: HashMap::new(),
            b: HashMap::new(),
            prototypes: HashMap::new(),
            entered: HashMap::new(),
            decisions: Decisions::new(experts.tasks()),
            passed: HashSet::new(),
        }
    }

    /// What it decided, sample by sample in the order they came; nothing if the task was given.
    ///
    /// # Errors
    /// If a routed layer was never passed: its experts took no part.
    pub fn finish(self) -> std::result::Result<Decisions, data::Error> {
        match self.experts.weights().find(|weight| !self.passed.contains(*weight)) {
            None => Ok(self.decisions),
            Some(weight) => Err(data::Error::bad(
                self.experts.path(),
                format!(
                    "`{weight}` has experts, but the forward pass of this model has no linear layer of that weight"
                ),
            )),
        }
    }

    /// The expert of each sample of a part, by the prototypes stored under `key`.
    async fn routes(&mut self, key: &str, x: &B::Tensor, part: &Part<B>) -> Result<Vec<usize>> {
        if let Choice::Oracle(task) = self.choice {
            return Ok(vec![task; part.lengths.len()]);
        }
        let tasks = self.experts.tasks().len();
        let shape = Shape::matrix(tasks, x.shape().cols);
        let prototypes =
            load(self.backend, &mut self.prototypes, key, shape, || self.experts.prototypes(key))?;
        let means = self.backend.mean_rows(x, &part.segments)?;
        let scores = cosine_scores(self.backend, means, self.backend.duplicate(prototypes)?)?;
        let scores = self.backend.download(&scores).await?;
        let routes = route(&scores, tasks);
        self.decisions.add(key, scores);
        Ok(routes)
    }

    /// `x A_t^T` of every group, for the weights that share the `A` of `first`.
    fn enter(&mut self, first: &str, x: &B::Tensor, groups: &Rc<Groups>) -> Result<Rc<Entered<B>>> {
        let shape = self.shape(first)?;
        let of_all = Shape::new(self.experts.tasks().len(), shape.rank, shape.d_in);
        let a = load(self.backend, &mut self.a, first, of_all, || self.experts.a(first))?;
        let mut thin = Vec::with_capacity(groups.members.len());
        for (task, tokens) in &groups.members {
            thin.push(match groups.members.len() {
                1 => narrow(self.backend, a, *task, x)?,
                _ => narrow(self.backend, a, *task, &self.backend.gather_rows(x, tokens)?)?,
            });
        }
        Ok(Rc::new(Entered { groups: Rc::clone(groups), thin }))
    }

    fn shape(&self, weight: &str) -> Result<experts::Shape> {
        let missing = || crate::model::Error::MissingTensor(weight.to_owned());
        self.experts.shape(weight).ok_or_else(missing)
    }
}

impl<B: Layers> Tap<B> for Router<'_, B> {
    fn enter_block(&mut self, _index: usize) {
        self.a.clear();
        self.b.clear();
        self.prototypes.clear();
        self.entered.clear();
    }

    async fn input(&mut self, weights: &[&str], x: &B::Tensor, part: &Part<B>) -> Result<()> {
        self.entered.clear();
        let experts = self.experts;
        let mut grouped: HashMap<&str, Rc<Groups>> = HashMap::new();
        let mut narrowed: HashMap<&str, Rc<Entered<B>>> = HashMap::new();
        for &weight in weights {
            let Some(key) = experts.prototypes_of(weight) else { continue };
            if !grouped.contains_key(key) {
                let routes = self.routes(key, x, part).await?;
                grouped.insert(key, Rc::new(Groups::new(&routes, &part.lengths)));
            }
            let first = experts.first_of_stack(weight);
            if !narrowed.contains_key(first) {
                narrowed.insert(first, self.enter(first, x, &grouped[key])?);
            }
            self.entered.insert(weight.to_owned(), Rc::clone(&narrowed[first]));
        }
        Ok(())
    }

    fn output(&mut self, weight: &str, y: &mut B::Tensor) -> Result<()> {
        let Some(entered) = self.entered.remove(weight) else { return Ok(()) };
        let shape = self.shape(weight)?;
        let of_all = Shape::new(self.experts.tasks().len(), shape.rank, shape.d_out);
        let b = load(self.backend, &mut self.b, weight, of_all, || self.experts.b(weight))?;
        let Entered { groups, thin } = &*entered;
        if let ([(task, _)], [thin]) = (&groups.members[..], &thin[..]) {
            add_wide(self.backend, b, *task, thin, y)?;
        } else {
            let mut restored = self.backend.zeros(y.shape())?;
            let mut at = 0;
            for ((task, tokens), thin) in groups.members.iter().zip(thin) {
                let mut part = self.backend.zeros(Shape::matrix(tokens.len(), shape.d_out))?;
                add_wide(self.backend, b, *task, thin, &mut part)?;
                let extent = [1, tokens.len(), shape.d_out];
                self.backend.copy_block(&part, [0; 3], &mut restored, [0, at, 0], extent)?;
                at += tokens.len();
            }
            self.backend.add(&self.backend.gather_rows(&restored, &groups.places)?, y)?;
        }
        self.passed.insert(weight.to_owned());
        Ok(())
    }
}

/// A tensor of the block being passed, read when it is first asked for.
fn load<'m, B: Layers>(
    backend: &B,
    loaded: &'m mut HashMap<String, B::Tensor>,
    weight: &str,
    shape: Shape,
    read: impl FnOnce() -> std::result::Result<Vec<f32>, data::Error>,
) -> Result<&'m B::Tensor> {
    if !loaded.contains_key(weight) {
        let values = read().map_err(|e| crate::model::Error::Weights(Box::new(e)))?;
        loaded.insert(weight.to_owned(), backend.upload(shape, &values)?);
    }
    Ok(&loaded[weight])
}
