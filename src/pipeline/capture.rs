//! Experts that run while they are merged: each is taken from block to block as the merge goes on, and the inputs of one
//! block's layers are all that is kept.

use super::{Error, Job};
use crate::backend::layers::Layers;
use crate::calibration::{Capture, Captured, MAX_SIZE};
use crate::data::{self, ModelSource};
use crate::plan::{Layer, Role, expert_source, read_proxies};
use std::collections::{HashMap, HashSet};

/// The models to run: those of experts whose calibration is data.
pub(super) fn sources<B>(job: &Job<'_, B>) -> Result<Vec<Option<ModelSource>>, Error> {
    let source = |t: usize| match job.family.experts[t].proxies {
        None => Ok(None),
        Some(_) => Ok(Some(expert_source(job.recipe, t)?)),
    };
    (0..job.family.experts.len()).map(source).collect()
}

/// The running experts, and the inputs of the block they have reached.
pub(super) struct Captures<'a, B: Layers> {
    /// By expert; none where a file has the inputs.
    running: Vec<Option<Capture<'a, B>>>,
    current: Vec<Vec<Captured>>,
    /// By expert: weight in its own file -> in the base.
    names: Vec<HashMap<String, String>>,
    /// The weights whose inputs are looked at.
    wanted: HashSet<&'a str>,
}

impl<'a, B: Layers> Captures<'a, B> {
    /// Embeds the samples of every expert that runs.
    pub fn new(job: &Job<'a, B>, sources: &'a [Option<ModelSource>]) -> Result<Self, Error> {
        let mut running = Vec::with_capacity(sources.len());
        for (source, expert) in sources.iter().zip(&job.family.experts) {
            let (Some(source), Some(proxies)) = (source, &expert.proxies) else {
                running.push(None);
                continue;
            };
            let model = source.model(job.backend)?;
            let samples = read_proxies(proxies, job.recipe.seed, source, model.inputs())?;
            let capture = Capture::new(job.backend, model, &samples, MAX_SIZE);
            running.push(Some(capture.map_err(data::Error::model(source.path()))?));
        }
        let esm = job.plan.layers.iter().filter(|layer| layer.role == Role::Esm);
        let wanted = esm.flat_map(|layer| &layer.parts).map(|part| part.name.as_str()).collect();
        let names = job.family.experts.iter().map(|expert| expert.names_of_base()).collect();
        Ok(Captures { current: running.iter().map(|_| Vec::new()).collect(), running, names, wanted })
    }

    /// Takes every running expert to the block of some layers that need inputs. Layers come in the order of their blocks.
    pub async fn reach(&mut self, job: &Job<'_, B>, layers: &[&Layer]) -> Result<(), Error> {
        for layer in layers.iter().filter(|layer| layer.role == Role::Esm) {
            self.reach_layer(job, layer).await?;
        }
        Ok(())
    }

    async fn reach_layer(&mut self, job: &Job<'_, B>, layer: &Layer) -> Result<(), Error> {
        let wanted = &self.wanted;
        for (t, running) in self.running.iter_mut().enumerate() {
            let Some(capture) = running else { continue };
            let failed = data::Error::model(job.family.experts[t].weights.path());
            let block = layer.block().filter(|&block| block < capture.blocks());
            let names = &self.names[t];
            let name_here = |own: &str| names.get(own).map_or(own, String::as_str).to_owned();
            while block.is_some_and(|block| capture.next_index() <= block) {
                self.current[t].clear(); // before the next block's inputs come
                let next = capture.next_block(|weight| wanted.contains(&*name_here(weight))).await;
                let next = next.map_err(&failed)?.into_iter();
                self.current[t] = next.map(|captured| captured.renamed(|own| name_here(&own))).collect();
            }
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
