//! What a device's time went to.

use crate::backend::gpu;
#[cfg(feature = "cli")]
use crate::report::{Column, Grid};
use serde::Serialize;

/// What a device's time went to, by its own clock.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Profile {
    /// From the first dispatch of a submission to its last, in seconds, of all submissions.
    pub seconds: f64,
    /// Submissions.
    pub submissions: u64,
    /// How often the host waited for numbers.
    pub read_backs: u64,
    /// Every kind of dispatch, the longest first.
    pub kernels: Vec<KernelTime>,
}

/// Dispatches of one kernel on one grid.
#[derive(Clone, Debug, Serialize)]
pub struct KernelTime {
    /// The shader.
    pub shader: &'static str,
    /// Its entry point.
    pub entry: &'static str,
    /// Workgroups.
    pub groups: [u32; 3],
    /// Dispatches.
    pub dispatches: u64,
    /// All together.
    pub seconds: f64,
}

impl Profile {
    /// Of a GPU, if it was opened for that.
    pub fn of(gpu: &gpu::Gpu) -> Option<Self> {
        let profile = gpu.profile()?;
        let time = |(of, (dispatches, seconds)): (crate::kernels::Stamped, _)| KernelTime {
            shader: of.shader,
            entry: of.entry,
            groups: of.groups,
            dispatches,
            seconds,
        };
        let mut kernels: Vec<KernelTime> = profile.kernels.into_iter().map(time).collect();
        kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let (submissions, read_backs) = (gpu.submissions(), gpu.read_backs());
        Some(Profile { seconds: profile.seconds, submissions, read_backs, kernels })
    }
}

#[cfg(feature = "cli")]
impl Profile {
    /// A row for every entry point, whatever its grids.
    pub fn table(&self, width: usize) -> String {
        let mut entries: Vec<KernelTime> = Vec::new();
        for kernel in &self.kernels {
            match entries.iter_mut().find(|e| (e.shader, e.entry) == (kernel.shader, kernel.entry)) {
                Some(entry) => {
                    entry.dispatches += kernel.dispatches;
                    entry.seconds += kernel.seconds;
                }
                None => entries.push(kernel.clone()),
            }
        }
        entries.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let mut grid = Grid::new([
            Column::text("shader"),
            Column::text("entry"),
            Column::number("dispatches"),
            Column::number("seconds"),
            Column::number("share")
                .meaning("from the first dispatch of a submission to its last, of all submissions together"),
        ]);
        for entry in entries {
            grid.row(vec![
                entry.shader.to_owned(),
                entry.entry.to_owned(),
                entry.dispatches.to_string(),
                format!("{:.4}", entry.seconds),
                format!("{:.1}%", 100.0 * entry.seconds / self.seconds.max(f64::MIN_POSITIVE)),
            ]);
        }
        let dispatches: u64 = self.kernels.iter().map(|kernel| kernel.dispatches).sum();
        format!(
            "\nthe device was at work for {:.2} s: {dispatches} dispatches in {} submissions, {} read-backs\n{}",
            self.seconds,
            self.submissions,
            self.read_backs,
            grid.render(width)
        )
    }
}
