//! Experts that run while they are merged: each is taken from block to block as the merge goes on, and the inputs of one
//! block's layers are all that is kept. Where a method wants the inputs behind what is merged already, the samples pass the
//! merged blocks, and the expert's own block is all that it runs of itself.

use super::candidate::Candidate;
use super::store::Store;
use super::{Error, Job, decompose};
use crate::backend::layers::Layers;
use crate::calibration::{Capture, Captured, MAX_SIZE};
use crate::data::{self, ModelSource};
use crate::plan::{Expert, Layer, expert_source, read_proxies};
use std::collections::{HashMap, HashSet};

/// The models to run.
pub(super) struct Sources {
    /// Those of experts whose calibration is data.
    experts: Vec<Option<ModelSource>>,
    /// The base, where samples pass what it becomes.
    base: Option<ModelSource>,
}

impl Sources {
    /// What a merge runs.
    pub fn open<B>(job: &Job<'_, B>) -> Result<Sources, Error> {
        let base = job.plan.by_blocks.then(|| ModelSource::checkpoint(&job.recipe.base_model)).transpose()?;
        Ok(Sources { base, ..Sources::alone(job)? })
    }

    /// The experts, where nothing is merged.
    pub fn alone<B>(job: &Job<'_, B>) -> Result<Sources, Error> {
        let source = |t: usize| match job.family.experts[t].proxies {
            None => Ok(None),
            Some(_) => Ok(Some(expert_source(job.recipe, t)?)),
        };
        let experts = (0..job.family.experts.len()).map(source).collect::<Result<_, Error>>()?;
        Ok(Sources { experts, base: None })
    }
}

/// The running experts, and the inputs of the block they have reached.
pub(super) struct Captures<'a, B: Layers> {
    /// By expert; none where a file has the inputs.
    running: Vec<Option<Capture<'a, B>>>,
    current: Vec<Vec<Captured>>,
    /// The block whose inputs these are, where the samples pass merged blocks.
    reached: Option<usize>,
    base: Option<&'a ModelSource>,
    /// By expert: weight in its own file -> in the base, where they differ.
    names: Vec<HashMap<String, Vec<String>>>,
    /// The weights whose inputs are looked at.
    wanted: HashSet<&'a str>,
}

impl<'a, B: Layers> Captures<'a, B> {
    /// Embeds the samples of every expert that runs.
    pub fn new(job: &Job<'a, B>, sources: &'a Sources, store: &mut Store) -> Result<Self, Error> {
        let base = sources.base.as_ref();
        if base.is_some() {
            store.flush()?;
        }
        let merged = base.map(|base| Candidate::so_far(job, base, store));
        let before = merged.as_ref().map(|merged| merged.model(job.backend)).transpose()?;
        let mut running = Vec::with_capacity(sources.experts.len());
        for (source, expert) in sources.experts.iter().zip(&job.family.experts) {
            let (Some(source), Some(proxies)) = (source, &expert.proxies) else {
                running.push(None);
                continue;
            };
            let model = source.model(job.backend)?;
            let samples = read_proxies(proxies, job.recipe.seed, source, model.inputs())?;
            let capture = match &before {
                Some(before) => Capture::behind(before, job.backend, model, &samples, MAX_SIZE),
                None => Capture::new(job.backend, model, &samples, MAX_SIZE),
            };
            running.push(Some(capture.map_err(data::Error::model(source.path()))?));
        }
        let seen = job.plan.layers.iter().filter(|layer| decompose::is_calibrated(job, layer.role));
        let wanted = seen.flat_map(|layer| &layer.parts).map(|part| part.name.as_str()).collect();
        let names = job.family.experts.iter().map(names_of_base).collect();
        let current = running.iter().map(|_| Vec::new()).collect();
        Ok(Captures { running, current, reached: None, base, names, wanted })
    }

    /// Takes every running expert to the block of some layers that need inputs. Layers come in the order of their blocks; `store` has
    /// what those before have become.
    pub async fn reach(
        &mut self,
        job: &Job<'_, B>,
        layers: &[&Layer],
        store: &mut Store,
    ) -> Result<(), Error> {
        for layer in layers.iter().filter(|layer| decompose::is_calibrated(job, layer.role)) {
            if let (Some(base), Some(block)) = (self.base, layer.block()) {
                self.follow(job, block, base, store).await?;
            } else {
                self.run_to(job, layer).await?;
            }
            self.check(job, layer)?;
        }
        Ok(())
    }

    /// Every expert by itself, to the block of a layer.
    async fn run_to(&mut self, job: &Job<'_, B>, layer: &Layer) -> Result<(), Error> {
        let wanted = &self.wanted;
        for (t, running) in self.running.iter_mut().enumerate() {
            let Some(capture) = running else { continue };
            let failed = data::Error::model(job.family.experts[t].weights.path());
            let block = layer.block().filter(|&block| block < capture.blocks());
            let Some(block) = block.filter(|&block| capture.next_index() <= block) else { continue };
            self.current[t].clear(); // before the next block's inputs come
            while capture.next_index() < block {
                // merged by an earlier run
                capture.skip_block().await.map_err(&failed)?;
            }
            let inputs = capture.next_block(|weight| is_wanted(wanted, &self.names[t], weight));
            self.current[t] = renamed(inputs.await.map_err(&failed)?, &self.names[t]);
        }
        Ok(())
    }

    /// The samples of every expert through the merged blocks before `block`, and what enters the layers of the expert's own there.
    async fn follow(
        &mut self,
        job: &Job<'_, B>,
        block: usize,
        base: &ModelSource,
        store: &mut Store,
    ) -> Result<(), Error> {
        if self.reached == Some(block) {
            return Ok(());
        }
        store.flush()?;
        let merged = Candidate::so_far(job, base, store);
        let before = merged.model(job.backend)?;
        let wanted = &self.wanted;
        for (t, running) in self.running.iter_mut().enumerate() {
            self.current[t].clear();
            let Some(capture) = running else { continue };
            if block >= capture.blocks() {
                continue;
            }
            while capture.next_index() < block {
                capture.pass(&before).await.map_err(data::Error::model(base.path()))?;
            }
            let inputs = capture.inputs_here(|weight| is_wanted(wanted, &self.names[t], weight));
            let failed = data::Error::model(job.family.experts[t].weights.path());
            self.current[t] = renamed(inputs.await.map_err(failed)?, &self.names[t]);
        }
        self.reached = Some(block);
        Ok(())
    }

    /// Whether every running expert has seen the inputs of a layer.
    fn check(&self, job: &Job<'_, B>, layer: &Layer) -> Result<(), Error> {
        for (t, _) in self.running.iter().enumerate().filter(|(_, running)| running.is_some()) {
            let captured = self.current[t].iter().any(|c| layer.parts.iter().any(|part| c.is_of(&part.name)));
            // an expert of a mixture may have seen no token
            if !captured && !layer.is_of_expert() {
                let expert = job.family.experts[t].name.clone();
                return Err(Error::NotCaptured { expert, layer: layer.name.clone() });
            }
        }
        Ok(())
    }

    /// The inputs of the block reached, by expert; empty for those that do not run.
    pub fn current(&self) -> &[Vec<Captured>] {
        &self.current
    }
}

fn names_of_base(expert: &Expert) -> HashMap<String, Vec<String>> {
    let mut names: HashMap<String, Vec<String>> = HashMap::new();
    expert.renamed().for_each(|(name, own)| names.entry(own.to_owned()).or_default().push(name.to_owned()));
    names
}

/// What the base calls a weight of an expert: several of its own where it has the parts of that apart.
fn names_here<'n>(names: &'n HashMap<String, Vec<String>>, own: &'n str) -> impl Iterator<Item = &'n str> {
    let found = names.get(own);
    let itself = found.is_none().then_some(own);
    found.into_iter().flatten().map(String::as_str).chain(itself)
}

fn is_wanted(wanted: &HashSet<&str>, names: &HashMap<String, Vec<String>>, own: &str) -> bool {
    names_here(names, own).any(|name| wanted.contains(name))
}

fn renamed(captured: Vec<Captured>, names: &HashMap<String, Vec<String>>) -> Vec<Captured> {
    captured
        .into_iter()
        .map(|c| c.renamed(|own| names_here(names, own).map(str::to_owned).collect()))
        .collect()
}
