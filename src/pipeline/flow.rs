//! What reading, writing and keeping may take, and what they took.

use super::rounding::Rounding;
use crate::report::{Overlap, Stages};
use crate::stage::Times;
use std::time::Duration;

/// The budget is dealt out: at most this share of it is read ahead,
const AHEAD: u64 = 4;
/// and this share waits to be written. Merged deltas get the rest.
const BEHIND: u64 = 8;
/// More than a batch ahead, or a few chunks of an output file behind, gains nothing.
const BATCHES_AHEAD: u64 = 2;
const MOST_BEHIND: u64 = 64 << 20;

/// Bytes of memory beside what the work on a layer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Read ahead.
    pub ahead: u64,
    /// Waiting to be written.
    pub behind: u64,
    /// Merged deltas.
    pub deltas: u64,
}

impl Limits {
    /// Deals out a budget. A batch is of so many bytes of deltas; the largest layer alone takes `largest` to read.
    pub fn new(budget: u64, batch_bytes: u64, largest: u64) -> Limits {
        let batch = batch_bytes.saturating_mul(BATCHES_AHEAD).max(largest); // deltas, and inputs of the same size
        let (ahead, behind) = ((budget / AHEAD).min(batch), (budget / BEHIND).min(MOST_BEHIND));
        Limits { ahead, behind, deltas: room_for_deltas(budget) }
    }
}

/// Bytes of a budget that merged deltas may take in memory.
pub fn room_for_deltas(budget: u64) -> u64 {
    budget - budget / AHEAD - budget / BEHIND
}

/// What the parts of a run share.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub limits: Limits,
    /// By expert.
    pub rounding: Vec<Rounding>,
    pub reading: Times,
    pub writing: Times,
    /// Bytes that were read ahead, and those that were not.
    pub ahead: u64,
    pub at_once: u64,
    /// Bytes of merged deltas in memory, and on disk.
    pub deltas: [u64; 2],
}

impl Flow {
    /// Of a merge of so many experts.
    pub fn new(limits: Limits, experts: usize) -> Flow {
        Flow {
            limits,
            rounding: vec![Rounding::default(); experts],
            reading: Times::default(),
            writing: Times::default(),
            ahead: 0,
            at_once: 0,
            deltas: [0; 2],
        }
    }

    /// For the report, of a run that took so long.
    pub fn stages(&self, total: Duration) -> Stages {
        let overlap =
            |times: Times| Overlap { seconds: times.busy.as_secs_f64(), waited: times.waited.as_secs_f64() };
        let computing = total.saturating_sub(self.reading.waited + self.writing.waited);
        Stages {
            reading: overlap(self.reading),
            writing: overlap(self.writing),
            computing: computing.as_secs_f64(),
            bytes_read_ahead: self.ahead,
            bytes_read_at_once: self.at_once,
            bytes_of_deltas_in_memory: self.deltas[0],
            bytes_of_deltas_on_disk: self.deltas[1],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_budget_is_dealt_out() {
        for budget in [0, 7, 1 << 20, 8 << 30, u64::MAX] {
            for (batch, largest) in [(0, 0), (1 << 24, 0), (1, 1 << 40), (u64::MAX, u64::MAX)] {
                let Limits { ahead, behind, deltas } = Limits::new(budget, batch, largest);
                let dealt = [ahead, behind, deltas].map(u128::from).iter().sum::<u128>();
                assert!(dealt <= u128::from(budget) && deltas >= budget / 2);
            }
        }
    }
}
