//! What reading, writing and keeping may take, and what they took.

use super::rounding::Rounding;
use crate::report::{Overlap, Stages};
use crate::stage::Times;
use std::time::Duration;

/// The budget is dealt out: at most this share of it is read ahead,
const AHEAD: u64 = 4;
/// and this share waits to be written. Merged deltas get what is left.
const BEHIND: u64 = 8;
/// Bytes past which neither gains anything: a batch and what belongs to it, and a few chunks of an output file.
const AHEAD_OF_BATCH: u64 = 2;
const LEAST_AHEAD: u64 = 256 << 20;
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
    /// Deals out a budget, for a device that merges batches of so many bytes.
    pub fn new(budget: u64, batch_bytes: u64) -> Limits {
        let ahead = (budget / AHEAD).min(batch_bytes.saturating_mul(AHEAD_OF_BATCH).max(LEAST_AHEAD));
        let behind = (budget / BEHIND).min(MOST_BEHIND);
        Limits { ahead, behind, deltas: budget - ahead - behind }
    }
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
        for (budget, batch) in
            [(0, 1 << 24), (7, 1), (1 << 20, 64 << 20), (8 << 30, 1 << 30), (u64::MAX, u64::MAX)]
        {
            let Limits { ahead, behind, deltas } = Limits::new(budget, batch);
            assert_eq!(u128::from(ahead) + u128::from(behind) + u128::from(deltas), u128::from(budget));
            assert!(deltas >= budget / 2);
        }
    }
}
