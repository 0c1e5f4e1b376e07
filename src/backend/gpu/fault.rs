//! What can be made to go wrong, for tests of what comes of it.

use super::Error;
use super::context::Context;
use std::cell::Cell;
use std::ops::Range;

/// Something that goes wrong at a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The dispatch, counted from the opening of the device.
    pub at: u64,
    /// What.
    pub kind: FaultKind,
    /// Whether it goes wrong again, at the first dispatch, on every device that is opened in place of the first.
    pub again: bool,
}

/// How a device can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The device is lost.
    Lost,
    /// The driver runs out of memory of its own.
    OutOfMemory,
    /// The next allocation is refused.
    Refused,
    /// The driver finds a command invalid.
    Invalid,
    /// The next wait for the device does not end.
    Silent,
    /// A bit of the next numbers that are read changes on its way.
    Wrong,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [FaultKind; 6] = [
        FaultKind::Lost,
        FaultKind::OutOfMemory,
        FaultKind::Refused,
        FaultKind::Invalid,
        FaultKind::Silent,
        FaultKind::Wrong,
    ];
}

/// The fault that a device is to have.
pub(super) struct Faults {
    planned: Cell<Option<Fault>>,
    /// What shows only later.
    due: Cell<Option<FaultKind>>,
}

impl Faults {
    pub fn new(planned: Option<Fault>) -> Self {
        Faults { planned: Cell::new(planned), due: Cell::new(None) }
    }

    /// Whether it is now that something goes wrong, which then does once.
    pub fn strikes(&self, kind: FaultKind) -> bool {
        let strikes = self.due.get() == Some(kind);
        if strikes {
            self.due.set(None);
        }
        strikes
    }
}

impl Context {
    /// Lets go wrong what is to go wrong at one of these dispatches.
    pub fn fail_at(&self, dispatches: Range<u64>) {
        let Some(fault) = self.faults.planned.get().filter(|fault| dispatches.contains(&fault.at)) else {
            return;
        };
        self.faults.planned.set(None);
        match fault.kind {
            FaultKind::Lost => self.device.destroy(),
            FaultKind::OutOfMemory => {
                self.fail(Error::OutOfMemory { what: "a driver's own buffer", bytes: 0 });
            }
            FaultKind::Invalid => {
                // there is no buffer without a use
                let _ = self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: 4,
                    usage: wgpu::BufferUsages::empty(),
                    mapped_at_creation: false,
                });
            }
            later => self.faults.due.set(Some(later)),
        }
    }
}
