//! What goes wrong on a device, and what comes of it: first another try at the work on a layer, in smaller slices or on a device
//! opened anew; where that is no step's own, the merge once more from its journal; and at last the CPU, if it was asked for.

use super::{Error, Job, Progress};
use crate::backend::{self, Backend};
use std::cell::RefCell;

/// What has gone wrong in a run and was dealt with.
#[derive(Default)]
pub(super) struct Faults(RefCell<Vec<String>>);

impl Faults {
    /// Tells of a fault, and remembers it for the report.
    pub fn note(&self, message: String, progress: &mut dyn Progress) {
        progress.warn(&message);
        self.0.borrow_mut().push(message);
    }

    /// All of them.
    pub fn list(&self) -> Vec<String> {
        self.0.borrow().clone()
    }
}

/// The error, unless the device is ready for another try.
pub(super) async fn try_again<B: Backend>(
    job: &Job<'_, B>,
    error: Error,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    match error.of_device() {
        Some(cause) if job.backend.recover(cause).await => {
            let how =
                if matches!(cause, backend::Error::OutOfMemory { .. }) { " in smaller slices" } else { "" };
            job.faults.note(format!("{error}; trying again{how}"), progress);
            Ok(())
        }
        _ => Err(error),
    }
}
