//! Where a device's time goes, by its own clock.

use crate::kernels::Stamped;
use std::collections::BTreeMap;

/// The time of every kernel since the device was opened, with [`Config::profile`](super::Config::profile).
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Dispatches and seconds of each kind.
    pub kernels: BTreeMap<Stamped, (u64, f64)>,
    /// From the first dispatch of a submission to its last, summed: kernels, and copies between them.
    pub seconds: f64,
}

impl Profile {
    /// A submission's.
    pub(super) fn add(&mut self, (each, seconds): (Vec<(Stamped, f64)>, f64)) {
        for (stamped, seconds) in each {
            let (count, total) = self.kernels.entry(stamped).or_default();
            *count += 1;
            *total += seconds;
        }
        self.seconds += seconds;
    }
}
