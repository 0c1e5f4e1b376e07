//! Commands on their way to the device: many to a submission, and no submission too long.

use super::Result;
use super::context::Context;
use super::profile::Profile;
use super::staging::Staging;
use crate::backend::Error;
use crate::kernels::{self, Parameters, Recorder, Stamps};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Dispatches of a submission, at most: by then the device may as well begin.
const DISPATCHES: u64 = 256;

/// What is encoded but not submitted.
pub(super) struct Queue {
    context: Rc<Context>,
    pending: RefCell<Pending>,
    submit_flops: u64,
    read_backs: Cell<u64>,
    submissions: Cell<u64>,
    profile: RefCell<Profile>,
}

struct Pending {
    /// The pass that kernels are encoded into, one after the other; it ends where something else comes between, and before the
    /// encoder goes.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
    parameters: Parameters,
    staging: Staging,
    /// Where every dispatch is timed.
    stamps: Option<Stamps>,
    flops: u64,
    dispatches: u64,
}

impl Queue {
    pub fn new(context: Rc<Context>, submit_flops: u64, timed: bool) -> Self {
        let timed = timed && context.device.features().contains(Stamps::FEATURES);
        let pending = Pending {
            pass: None,
            encoder: None,
            parameters: Parameters::new(&context.device),
            staging: Staging::new(Rc::clone(&context)),
            stamps: timed.then(|| Stamps::new(&context.device, &context.queue)),
            flops: 0,
            dispatches: 0,
        };
        let (read_backs, submissions) = (Cell::new(0), Cell::new(0));
        let profile = RefCell::default();
        Queue { context, pending: RefCell::new(pending), submit_flops, read_backs, submissions, profile }
    }

    pub fn dispatches(&self) -> u64 {
        self.pending.borrow().parameters.pushed()
    }

    pub fn submissions(&self) -> u64 {
        self.submissions.get()
    }

    pub fn read_backs(&self) -> u64 {
        self.read_backs.get()
    }

    /// Where the time went, if it was asked.
    pub fn profile(&self) -> Option<Profile> {
        self.pending.borrow().stamps.as_ref().map(|_| self.profile.borrow().clone())
    }

    /// The host is about to wait for numbers.
    pub fn count_read_back(&self) {
        self.read_backs.set(self.read_backs.get() + 1);
    }

    /// Encodes kernels that take about `flops` operations.
    pub fn record(
        &self,
        flops: u64,
        encode: impl FnOnce(&mut Recorder<'_>) -> kernels::Result<()>,
    ) -> Result<()> {
        self.context.check()?;
        let mut pending = self.pending.borrow_mut();
        if pending.flops > 0 && pending.flops + flops > self.submit_flops || pending.dispatches >= DISPATCHES
        {
            self.submit_pending(&mut pending)?;
        }
        let Pending { encoder, pass, parameters, stamps, .. } = &mut *pending;
        let pass = pass.get_or_insert_with(|| {
            let mut pass = self.open(encoder).begin_compute_pass(&Default::default()).forget_lifetime();
            if let Some(stamps) = stamps {
                stamps.push(&mut pass, None);
            }
            pass
        });
        let before = parameters.pushed();
        let encoded = encode(&mut self.context.kernels.record_with(pass, parameters, stamps.as_mut()));
        self.context.fail_at(before..parameters.pushed());
        pending.flops += flops;
        pending.dispatches += 1;
        encoded.map_err(convert)
    }

    /// Encodes commands that are not kernels.
    pub fn encode(&self, encode: impl FnOnce(&mut wgpu::CommandEncoder)) -> Result<()> {
        self.context.check()?;
        let mut pending = self.pending.borrow_mut();
        pending.pass = None;
        encode(self.open(&mut pending.encoder));
        Ok(())
    }

    /// Copies host memory to the start of a buffer whose size allows for whole words.
    pub fn write(&self, bytes: &[u8], buffer: &wgpu::Buffer) -> Result<()> {
        self.context.check()?;
        let mut done = 0;
        while done < bytes.len() {
            let mut pending = self.pending.borrow_mut();
            if pending.staging.must_submit() {
                self.submit_pending(&mut pending)?;
            }
            pending.pass = None;
            let Pending { encoder, staging, .. } = &mut *pending;
            let (source, offset, len) = staging.fill(&bytes[done..])?;
            let size = (len as u64).next_multiple_of(4);
            self.open(encoder).copy_buffer_to_buffer(&source, offset, buffer, done as u64, size);
            done += len;
        }
        Ok(())
    }

    /// Sends everything to the device.
    pub fn submit(&self) -> Result<()> {
        self.submit_pending(&mut self.pending.borrow_mut())
    }

    fn open<'a>(&self, encoder: &'a mut Option<wgpu::CommandEncoder>) -> &'a mut wgpu::CommandEncoder {
        encoder.get_or_insert_with(|| self.context.device.create_command_encoder(&Default::default()))
    }

    fn submit_pending(&self, pending: &mut Pending) -> Result<()> {
        pending.pass = None;
        if let Some(mut encoder) = pending.encoder.take() {
            if let Some(stamps) = &pending.stamps {
                stamps.resolve(&mut encoder);
            }
            pending.parameters.seal();
            pending.staging.seal();
            let number = self.context.submit(encoder.finish());
            self.submissions.set(self.submissions.get() + 1);
            pending.staging.recall(number);
            if let Some(stamps) = pending.stamps.as_mut().filter(|stamps| stamps.len() > 0) {
                stamps.map();
                self.context.wait(None)?;
                self.profile.borrow_mut().add(stamps.take());
            }
        }
        (pending.flops, pending.dispatches) = (0, 0);
        self.context.check()
    }
}

/// Kernels' complaints as the backend's. Shapes are checked before, so that only sizes are left.
fn convert(error: kernels::Error) -> Error {
    match error {
        kernels::Error::Binding { kernel, bytes, limit } => Error::TooLarge { what: kernel, bytes, limit },
        other => Error::Internal(other.to_string()),
    }
}
