//! The file between the two halves of a merge.

use super::capture::{self, Captures};
use super::decompose::{Outcome, merge_layers};
use super::outputs::{Keep, delta_meta};
use super::rounding::Rounding;
use super::{Error, Job, Progress, batches, sums, weights};
use crate::backend::Backend;
use crate::backend::layers::Layers;
use crate::checkpoint::{Checkpoint, DeltaMeta, DeltaWriter, OutputDir};
use crate::plan::{Layer, Role, SUM_CHUNK};
use std::time::Instant;

/// What the first half leaves to the second.
pub(super) struct Spilled {
    /// The deltas.
    pub deltas: DeltaWriter,
    /// What each layer was like, by layer.
    pub outcomes: Vec<Outcome>,
    /// Time, by layer; a batch's is shared evenly.
    pub seconds: Vec<f64>,
}

/// First half: decomposed layers, and with `--keep-delta` every other merged layer too, into the spill.
pub(super) async fn spill<B: Layers>(
    job: &Job<'_, B>,
    output: &OutputDir,
    keep: Option<&Keep>,
    rounding: &mut [Rounding],
    progress: &mut dyn Progress,
) -> Result<Spilled, Error> {
    let all = keep.is_some() || job.plan.search.is_some();
    let tensors = job.plan.layers.iter().filter(|l| is_spilled(l, all)).flat_map(|l| &l.parts);
    let tensors = tensors.map(|part| (part.name.clone(), part.shape.clone())).collect();
    let ones = vec![1.0; job.plan.layers.len()];
    let mut spill = match keep {
        Some(keep) => DeltaWriter::create(keep.folder(), tensors, &delta_meta(job, &ones, "0".repeat(64)))?,
        None => DeltaWriter::create(output.path(), tensors, &DeltaMeta::default())?,
    };

    let sources = capture::sources(job)?;
    let mut captures = Captures::new(job, &sources)?;
    let mut outcomes = vec![Outcome::default(); job.plan.layers.len()];
    let mut seconds = vec![0.0; job.plan.layers.len()];
    let order = batches::order(job, all);
    let mut rest = &order[..];
    while let Some(&first) = rest.first() {
        let started = Instant::now();
        let leader = &job.plan.layers[first];
        let mut batch = &rest[..batches::next(job, rest)];
        progress.layer(&batches::name(job, batch));
        if leader.role == Role::Sum {
            seek(&mut spill, leader)?;
            spill_sum(job, leader, &mut spill, rounding).await?;
        } else {
            let merged = loop {
                let layers: Vec<&Layer> = batch.iter().map(|&i| &job.plan.layers[i]).collect();
                let before = rounding.to_vec();
                let tried = match captures.reach(job, &layers).await {
                    Ok(()) => merge_layers(job, &layers, captures.current(), rounding).await,
                    Err(error) => Err(error),
                };
                match tried {
                    Ok(merged) => break merged,
                    Err(error) => try_again(job, error, progress).await?,
                }
                batch = &rest[..batches::next(job, rest)]; // the device may do with less now
                // what the failed try has seen is seen again; experts that run begin again, for a lost device took their
                // hidden states with it
                rounding.clone_from_slice(&before);
                captures = Captures::new(job, &sources)?;
            };
            for ((&i, delta), outcome) in batch.iter().zip(merged.deltas()).zip(&merged.outcomes) {
                seek(&mut spill, &job.plan.layers[i])?;
                spill.write(delta)?;
                outcomes[i].clone_from(outcome);
            }
        }
        for &i in batch {
            progress.advance(layer_bytes(job, &job.plan.layers[i]));
            seconds[i] = started.elapsed().as_secs_f64() / batch.len() as f64;
        }
        rest = &rest[batch.len()..];
    }
    spill.flush()?;
    Ok(Spilled { deltas: spill, outcomes, seconds })
}

/// The error, unless the device is ready for another try.
pub(super) async fn try_again<B: Backend>(
    job: &Job<'_, B>,
    error: Error,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    match error.of_device() {
        Some(cause) if job.backend.recover(cause).await => {
            progress.warn(&format!("{error}; trying again in smaller slices"));
            Ok(())
        }
        _ => Err(error),
    }
}

/// To the place of a layer's delta.
fn seek(spill: &mut DeltaWriter, layer: &Layer) -> Result<(), Error> {
    layer.parts.first().map_or(Ok(()), |first| Ok(spill.seek(&first.name)?))
}

/// Whether the delta of a layer goes through the spill: always where layers are compared, and everywhere if the deltas are
/// kept.
pub(super) fn is_spilled(layer: &Layer, keep: bool) -> bool {
    match layer.role {
        Role::Esm | Role::TsvM => true,
        Role::Sum => keep,
        Role::Base | Role::Pretrained | Role::Experts => false,
    }
}

async fn spill_sum<B: Backend>(
    job: &Job<'_, B>,
    layer: &Layer,
    spill: &mut DeltaWriter,
    rounding: &mut [Rounding],
) -> Result<(), Error> {
    for part in &layer.parts {
        for start in (0..part.elements()).step_by(SUM_CHUNK) {
            let range = start..part.elements().min(start + SUM_CHUNK);
            let base = weights::base_row(job.backend, &job.family.base, &part.name, range.clone())?;
            let sum = sums::sum(job, &part.name, range, &base, rounding).await?;
            spill.write(&job.backend.download(&sum).await.map_err(Error::device(&part.name))?)?;
        }
    }
    Ok(())
}

/// Bytes of a layer's weights in the base and all experts.
pub(super) fn layer_bytes<B>(job: &Job<'_, B>, layer: &Layer) -> u64 {
    let models = std::iter::once(&job.family.base).chain(job.family.experts.iter().map(|e| &e.weights));
    let bytes = |model: &Checkpoint| {
        layer.parts.iter().filter_map(|p| model.get(&p.name)).map(|m| m.bytes).sum::<u64>()
    };
    models.map(bytes).sum()
}
