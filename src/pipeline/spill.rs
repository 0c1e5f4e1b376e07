//! The file between the two halves of a merge.

use super::capture::{self, Captures};
use super::decompose::{Outcome, merge_layer};
use super::outputs::{delta_meta, parent};
use super::rounding::Rounding;
use super::{Error, Job, Options, Progress, sums, weights};
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
    /// Time, by layer.
    pub seconds: Vec<f64>,
}

/// First half: decomposed layers, and with `--keep-delta` every other merged layer too, into the spill.
pub(super) async fn spill<B: Layers>(
    job: &Job<'_, B>,
    output: &OutputDir,
    options: &Options,
    rounding: &mut [Rounding],
    progress: &mut dyn Progress,
) -> Result<Spilled, Error> {
    let keep = options.keep_delta.is_some() || job.plan.search.is_some();
    let tensors = job.plan.layers.iter().filter(|l| is_spilled(l, keep)).flat_map(|l| &l.parts);
    let tensors = tensors.map(|part| (part.name.clone(), part.shape.clone())).collect();
    // The kept file is created where it will stay, since only a rename within one folder is atomic.
    let folder = match &options.keep_delta {
        Some(file) => parent(file),
        None => output.path(),
    };
    let ones = vec![1.0; job.plan.layers.len()];
    let meta = if options.keep_delta.is_some() {
        delta_meta(job, &ones, "0".repeat(64))
    } else {
        DeltaMeta::default()
    };
    let mut spill = DeltaWriter::create(folder, tensors, &meta)?;

    let sources = capture::sources(job)?;
    let mut captures = Captures::new(job, &sources)?;
    let mut outcomes = vec![Outcome::default(); job.plan.layers.len()];
    let mut seconds = vec![0.0; job.plan.layers.len()];
    for i in block_order(&job.plan.layers) {
        let layer = &job.plan.layers[i];
        let started = Instant::now();
        if is_spilled(layer, keep) {
            progress.layer(&layer.name);
            if let Some(first) = layer.parts.first() {
                spill.seek(&first.name)?;
            }
            if layer.role == Role::Sum {
                spill_sum(job, layer, &mut spill, rounding).await?;
            } else {
                let (values, merged) = loop {
                    let before = rounding.to_vec();
                    let tried = match captures.reach(job, layer).await {
                        Ok(()) => merge_layer(job, layer, captures.current(), i as u32, rounding).await,
                        Err(error) => Err(error),
                    };
                    match tried {
                        Ok(merged) => break merged,
                        Err(error) => try_again(job, error, progress).await?,
                    }
                    // what the failed try has seen is seen again; experts that run begin again, for a lost device took
                    // their hidden states with it
                    rounding.clone_from_slice(&before);
                    captures = Captures::new(job, &sources)?;
                };
                spill.write(&values)?;
                outcomes[i] = merged;
            }
            progress.advance(layer_bytes(job, layer));
        }
        seconds[i] = started.elapsed().as_secs_f64();
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

/// The layers by their blocks: in that order an expert that runs meanwhile shows their inputs. Files may have another, such
/// as 0, 1, 10, 11, 2.
fn block_order(layers: &[Layer]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|&i| layers[i].block());
    order
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
            let base = weights::read_row(job.backend, &job.family.base, &part.name, range.clone(), None)?;
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
