//! An open device, and what it has had to complain about.

use super::fault::{FaultKind, Faults};
use super::promise::Promise;
use super::{Config, Error, Pace, Result, self_test};
use crate::kernels::{Kernels, Stamps};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// An open device.
pub(super) struct Context {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    pub kernels: Kernels,
    pub pace: Pace,
    pub faults: Faults,
    failure: Failure,
    /// Submissions that are not known to be done, oldest first, by number.
    running: RefCell<VecDeque<(u64, wgpu::SubmissionIndex)>>,
    submitted: Cell<u64>,
    /// How long one of them may take.
    patience: Duration,
}

/// The first thing that went wrong outside of any call. It stays: what was queued since cannot be trusted.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<Error>>>);

impl Failure {
    fn set(&self, error: Error) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A lost device explains every error that follows from it, and those that came just before.
        if first.is_none() || matches!(error, Error::DeviceLost(_)) {
            *first = Some(error);
        }
    }

    fn get(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Context {
    /// Whether its adapter is a program on the host's own processor.
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    pub async fn open(adapter: &wgpu::Adapter, config: &Config) -> Result<Self> {
        let clock = if config.profile { Stamps::FEATURES } else { wgpu::Features::empty() };
        let wanted = Kernels::optional_features() | config.features | clock;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("esmerge"),
            required_features: adapter.features() & wanted,
            required_limits: limits(adapter, config),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let opened = adapter.request_device(&descriptor).await;
        let (device, queue) = opened.map_err(|e| Error::NoDevice(e.to_string()))?;
        let context = Self::new(device, queue, config);
        let trusted = context.kernels.subgroups() && self_test::subgroups_add_up(&context).await?;
        let kernels = context.kernels.with_subgroups(trusted).with_half_floats(config.half_floats);
        let context = Context { kernels, ..context };
        let trusted = context.kernels.half_floats() && self_test::half_floats_are_exact(&context).await?;
        let pace = Pace::measured(&context).await?;
        let kernels = context.kernels.with_half_floats(trusted).with_enough_tiles(pace.enough_tiles());
        Ok(Context { kernels, pace, ..context })
    }

    /// A device that is open already.
    pub fn new(device: wgpu::Device, queue: wgpu::Queue, config: &Config) -> Self {
        let failure = Failure::default();
        let reported = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error| reported.set(convert(&error))));
        let reported = failure.clone();
        device.set_device_lost_callback(move |reason, message| {
            // Dropping the device calls this too; there is no one left to tell then.
            reported.set(Error::DeviceLost(format!("{reason:?}: {message}")));
        });

        let kernels = Kernels::new(&device, config.checks);
        let kernels = match config.products {
            Some(products) => kernels.with_products(products),
            None => kernels,
        };
        let kernels = if config.subgroups { kernels } else { kernels.with_subgroups(false) };
        Context {
            info: device.adapter_info(),
            device,
            queue,
            kernels,
            pace: Pace::untimed(),
            faults: Faults::new(config.fault),
            failure,
            running: RefCell::default(),
            submitted: Cell::new(0),
            patience: config.patience,
        }
    }

    /// What went wrong since the device was opened.
    pub fn check(&self) -> Result<()> {
        if self.failure.get().is_none() {
            return Ok(());
        }
        // If the device is lost, it says so when polled; that explains more than what followed from it.
        let _ = self.device.poll(wgpu::PollType::Poll);
        self.failure.get().map_or(Ok(()), Err)
    }

    /// Takes note of something that went wrong outside of any call.
    pub fn fail(&self, error: Error) {
        self.failure.set(error);
    }

    /// Gives the device something to do; the number of that.
    pub fn submit(&self, commands: wgpu::CommandBuffer) -> u64 {
        let number = self.submitted.get() + 1;
        self.submitted.set(number);
        self.running.borrow_mut().push_back((number, self.queue.submit([commands])));
        number
    }

    /// Bytes of the largest part of a buffer that can be bound.
    pub fn binding_limit(&self) -> u64 {
        self.kernels.limits().max_storage_buffer_binding_size
    }

    /// Waits until everything submitted is done, in a browser too.
    pub async fn settled(&self) -> Result<()> {
        let (done, keep) = Promise::new();
        self.queue.on_submitted_work_done(move || keep(()));
        self.wait(None)?;
        done.kept().await;
        self.check()
    }

    /// Waits until a submission, or everything submitted, is done. In a browser there is no waiting for a device but by
    /// [`settled`](Context::settled) and for numbers from it, nor any other need.
    pub fn wait(&self, submission: Option<u64>) -> Result<()> {
        // one by one, because each is short, however long they are together
        while let Some(index) = self.oldest_running(submission) {
            self.poll(Some(index))?;
            self.running.borrow_mut().pop_front();
        }
        match submission {
            Some(_) => self.check(),
            None => self.poll(None),
        }
    }

    fn oldest_running(&self, up_to: Option<u64>) -> Option<wgpu::SubmissionIndex> {
        let running = self.running.borrow();
        let (number, index) = running.front()?;
        up_to.is_none_or(|last| *number <= last).then(|| index.clone())
    }

    fn poll(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let polled = match self.faults.strikes(FaultKind::Silent) {
            true => Err(wgpu::PollError::Timeout),
            false => {
                self.device.poll(wgpu::PollType::Wait { submission_index, timeout: Some(self.patience) })
            }
        };
        match polled {
            Err(wgpu::PollError::Timeout) => self.fail(Error::Silent(self.patience.as_secs())),
            // such as for what was submitted to a lost device; the news of that may be still to come
            Err(e) => {
                let _ = self.device.poll(wgpu::PollType::Poll);
                self.check()?;
                return Err(Error::Internal(e.to_string()));
            }
            Ok(_) => {}
        }
        self.check()
    }
}

/// All that the adapter has, or as much of it as the configuration asks for.
fn limits(adapter: &wgpu::Adapter, config: &Config) -> wgpu::Limits {
    let all = adapter.limits();
    match &config.limits {
        Some(wanted) => wanted.clone().or_worse_values_from(&all),
        None => all,
    }
}

fn convert(error: &wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { what: "a driver's own buffer", bytes: 0 },
        other => Error::Internal(other.to_string()),
    }
}
