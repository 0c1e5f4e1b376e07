//! First half of a merge: decomposed layers, whose deltas are compared before the first can be written.

use super::capture::{Captures, Sources};
use super::decompose::{OnHost, Outcome, merge_layers};
use super::faults::try_again;
use super::flow::Flow;
use super::outputs::{Keep, delta_meta};
use super::reader::{Reader, Request};
use super::rounding::{self, Rounding};
use super::slabs::Merger;
use super::store::{Delta, Store};
use super::{Error, Job, Progress, batches, decompose, weights};
use crate::backend::Backend;
use crate::backend::layers::Layers;
use crate::checkpoint::journal::Ledger;
use crate::checkpoint::{Checkpoint, Extent};
use crate::host::Instant;
use crate::plan::{Layer, Part, Plan, Role};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What the first half leaves to the second.
pub(super) struct Spilled {
    /// The deltas.
    pub deltas: Store,
    /// What each layer was like, by layer.
    pub outcomes: Vec<Outcome>,
    /// Time, by layer; a batch's is shared evenly.
    pub seconds: Vec<f64>,
}

/// What the ledger says of a unit of this half, beside its deltas.
#[derive(Serialize, Deserialize)]
struct Said {
    outcomes: Vec<Outcome>,
    seconds: f64,
    rounding: Vec<Rounding>,
}

/// The units of work of the first half: decomposed layers, and with `--keep-delta` every other merged layer too.
pub(super) fn units<B: Backend>(job: &Job<'_, B>, keep: bool) -> Vec<Vec<usize>> {
    batches::units(job, &batches::order(job, job.plan.puts_all_aside(keep)))
}

/// The name of a unit in the ledger.
pub(super) fn unit_name(index: usize) -> String {
    format!("{UNITS}{index}")
}

/// How the names of all units begin.
pub(super) const UNITS: &str = "layers/";

/// First half: the units, or a share of them, into the store. What the ledger has is taken from there.
pub(super) async fn spill<B: Layers>(
    job: &Job<'_, B>,
    ledger: &Ledger,
    (units, share): (&[Vec<usize>], Range<usize>),
    keep: Option<&Keep>,
    flow: &mut Flow,
    progress: &mut dyn Progress,
) -> Result<Spilled, Error> {
    let mut store = store(job, ledger, keep, flow)?;
    let sources = Sources::open(job)?;
    let mut captures = None;
    let mut outcomes = vec![Outcome::default(); job.plan.layers.len()];
    let mut seconds = vec![0.0; job.plan.layers.len()];
    let before: Vec<Option<(Said, Option<Extent>)>> =
        (0..units.len()).map(|index| ledger.done(&unit_name(index))).collect();
    let pending = |index: &usize| share.contains(index) && before[*index].is_none();
    let ahead = |from: usize| (from..units.len()).filter(pending).map(|index| &units[index][..]);
    let mut rounding = std::mem::take(&mut flow.rounding);
    flow.rounding = vec![Rounding::default(); rounding.len()];
    let mut reader = Reader::ahead(flow, requests(job, ahead(0)));
    let mut short = false;
    for (index, unit) in units.iter().enumerate().filter(|(index, _)| share.contains(index)) {
        let said = if let Some((said, values)) = &before[index] {
            if let Some(values) = values {
                store.restore(values, &deltas(job, unit))?;
            }
            Said { outcomes: said.outcomes.clone(), rounding: said.rounding.clone(), seconds: said.seconds }
        } else {
            let started = Instant::now();
            let elements = unit.iter().map(|&i| job.plan.layers[i].elements()).sum::<usize>();
            store.begin(4 * elements as u64)?;
            reader.rounding.fill(Rounding::default());
            let mut outcomes = Vec::with_capacity(unit.len());
            while let Some(&first) = unit.get(outcomes.len()) {
                let leader = &job.plan.layers[first];
                let rest = &unit[outcomes.len()..];
                let mut batch = if short { &rest[..batches::next(job, rest)] } else { rest };
                progress.layer(&batches::name(job, batch));
                if leader.role == Role::Sum {
                    spill_sum(job, leader, &mut store, &mut reader).await?;
                    outcomes.push(Outcome::default());
                    continue;
                }
                let merged = loop {
                    let layers: Vec<&Layer> = batch.iter().map(|&i| &job.plan.layers[i]).collect();
                    let counted = reader.rounding.clone();
                    match merge_seen(job, &layers, (&mut captures, &sources), &mut store, &mut reader).await {
                        Ok(merged) => break merged,
                        Err(error) => try_again(job, error, progress).await?,
                    }
                    short = true; // the device may do with less now
                    batch = &rest[..batches::next(job, rest)];
                    // what the failed try has seen is seen again; experts that run begin again, for a lost device took their
                    // hidden states with it
                    reader.rounding = counted;
                    reader.restart(requests(job, std::iter::once(rest).chain(ahead(index + 1))));
                    captures = None;
                };
                let OnHost { values, outcomes: of_batch } = merged;
                store.put(values, &deltas(job, batch))?;
                outcomes.extend(of_batch);
            }
            let seconds = started.elapsed().as_secs_f64();
            let said = Said { outcomes, seconds, rounding: reader.rounding.clone() };
            store.end(unit_name(index), &said)?;
            said
        };
        rounding::add(&mut rounding, &said.rounding);
        for (&i, outcome) in unit.iter().zip(said.outcomes) {
            progress.advance(layer_bytes(job, &job.plan.layers[i]));
            outcomes[i] = outcome;
            seconds[i] = said.seconds / unit.len() as f64;
        }
    }
    reader.finish(flow);
    flow.rounding = rounding;
    store.flush()?;
    (flow.deltas, flow.writing) = (store.bytes(), store.times());
    Ok(Spilled { deltas: store, outcomes, seconds })
}

/// Merges layers with what is seen of their inputs. Experts that run are embedded before the first layer that looks at inputs.
async fn merge_seen<'a, B: Layers>(
    job: &Job<'a, B>,
    layers: &[&Layer],
    (captures, sources): (&mut Option<Captures<'a, B>>, &'a Sources),
    store: &mut Store,
    reader: &mut Reader<'_>,
) -> Result<OnHost, Error> {
    let captures = match captures {
        Some(captures) => captures,
        None => captures.insert(Captures::new(job, sources, store)?),
    };
    captures.reach(job, layers, store).await?;
    merge_layers(job, layers, captures.current(), reader).await
}

/// Where the deltas go.
fn store<B>(job: &Job<'_, B>, ledger: &Ledger, keep: Option<&Keep>, flow: &Flow) -> Result<Store, Error> {
    let all = job.plan.puts_all_aside(keep.is_some());
    let tensors = job.plan.layers.iter().filter(|l| is_spilled(l, all)).flat_map(|l| &l.parts);
    let tensors: Vec<_> = tensors.map(|part| (part.name.clone(), part.shape.clone())).collect();
    let store = Store::new(ledger.clone(), &tensors, flow.limits.deltas, flow.limits.behind);
    let ones = vec![1.0; job.plan.layers.len()];
    match keep {
        Some(keep) => store.kept(keep.folder(), tensors, &delta_meta(job, &ones, "0".repeat(64))),
        None => Ok(store),
    }
}

/// What will be read to merge units, batch by batch.
fn requests<'a, 'u, B: Backend>(
    job: &'a Job<'_, B>,
    mut units: impl Iterator<Item = &'u [usize]> + 'a,
) -> impl Iterator<Item = Request> + 'a
where
    'u: 'a,
{
    let mut rest: &[usize] = &[];
    let of_batch = move || {
        if rest.is_empty() {
            rest = units.next()?;
        }
        let leader = &job.plan.layers[*rest.first()?];
        let batch;
        (batch, rest) = rest.split_at(batches::next(job, rest));
        Some(match leader.role {
            Role::Sum => leader
                .parts
                .iter()
                .flat_map(|part| chunks(job, part))
                .flat_map(|(tensor, range)| Merger::new(job).requests(tensor, range))
                .collect(),
            _ => decompose::requests(job, &batch.iter().map(|&i| &job.plan.layers[i]).collect::<Vec<_>>()),
        })
    };
    std::iter::from_fn(of_batch).flatten()
}

/// The deltas of the layers of a batch, tensor by tensor.
fn deltas<'a, B>(job: &Job<'a, B>, batch: &[usize]) -> Vec<Delta<'a>> {
    let parts = batch.iter().flat_map(|&i| &job.plan.layers[i].parts);
    let delta = |part: &'a Part| Delta { tensor: &part.name, first: 0, len: part.elements() };
    parts.map(delta).collect()
}

/// The pieces in which a tensor is merged element by element.
pub(super) fn chunks<'p, B: Backend>(
    job: &Job<'_, B>,
    part: &'p Part,
) -> impl Iterator<Item = (&'p str, Range<usize>)> + use<'p, B> {
    Merger::new(job).ranges(&part.name).into_iter().map(|range| (part.name.as_str(), range))
}

/// Whether the delta of a layer goes through the spill: always where layers are compared, and everywhere if the deltas are
/// kept.
pub(super) fn is_spilled(layer: &Layer, keep: bool) -> bool {
    match layer.role {
        Role::Esm | Role::TsvM | Role::Spectral => true,
        Role::Sum => keep,
        Role::Base | Role::Pretrained | Role::Experts => false,
    }
}

async fn spill_sum<B: Backend>(
    job: &Job<'_, B>,
    layer: &Layer,
    store: &mut Store,
    reader: &mut Reader<'_>,
) -> Result<(), Error> {
    let merger = Merger::new(job);
    for part in &layer.parts {
        for (tensor, range) in chunks(job, part) {
            let base = weights::base_row(job.backend, reader, &job.family.base, tensor, range.clone())?;
            let sum = merger.merge(reader, tensor, range.clone(), &base).await?;
            let values = job.backend.download(&sum).await.map_err(Error::device(tensor))?;
            let (first, len) = (range.start, range.len());
            store.put(values, &[Delta { tensor, first, len }])?;
        }
    }
    Ok(())
}

/// Bytes of the deltas that the first half leaves to the second; if they are kept, of all.
pub fn delta_bytes(plan: &Plan, kept: bool) -> u64 {
    let all = plan.puts_all_aside(kept);
    plan.layers.iter().filter(|layer| is_spilled(layer, all)).map(|layer| 4 * layer.elements() as u64).sum()
}

/// Bytes read for the layer that needs most at once.
pub(super) fn largest_read<B: Backend>(job: &Job<'_, B>) -> u64 {
    let bytes = |requests: Vec<Request>| requests.iter().map(Request::bytes).sum::<u64>();
    let of_layer = |layer: &Layer| match layer.role {
        Role::Esm | Role::TsvM | Role::Spectral | Role::Experts => bytes(decompose::requests(job, &[layer])),
        Role::Sum | Role::Base | Role::Pretrained => {
            let first = layer.parts.iter().filter_map(|part| chunks(job, part).next());
            first
                .map(|(tensor, range)| bytes(weights::row_requests(job.family, tensor, range)))
                .max()
                .unwrap_or(0)
        }
    };
    let routed = job.plan.experts.iter().flat_map(|experts| &experts.layers).map(|routed| &routed.layer);
    job.plan.layers.iter().chain(routed).map(of_layer).max().unwrap_or(0)
}

/// Bytes of a layer's weights in the base and all experts.
pub(super) fn layer_bytes<B>(job: &Job<'_, B>, layer: &Layer) -> u64 {
    let models = std::iter::once(&job.family.base).chain(job.family.experts.iter().map(|e| &e.weights));
    let bytes = |model: &Checkpoint| {
        layer.parts.iter().filter_map(|p| model.get(&p.name)).map(|m| m.bytes).sum::<u64>()
    };
    models.map(bytes).sum()
}
