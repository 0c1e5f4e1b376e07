//! How fast the kernels are, as a fraction of what the device can do.
//!
//! Two peaks are measured first: multiply-adds and a copy, written in the same language and run on the same device as the
//! kernels. Every kernel's arithmetic and memory traffic is then given as a fraction of them. On an adapter that can, the
//! device itself writes down when a pass begins and ends; elsewhere it is the host's clock around a submission and the
//! wait for it, with so many runs in it that the submission does not count. Algorithms, which are many kernels and read
//! some results back, are always timed by the host.

mod algorithm;
mod case;
mod check;
mod compare;
mod cpu;
mod cpu_peak;
mod error;
mod gpu;
mod operands;
mod report;
mod sampling;

pub use case::{Case, Kernel, Size};
pub use compare::{Comparison, compare};
pub use error::Error;
pub use report::{Measurement, Peak, Report};
pub use sampling::Times;

use crate::backend::cpu::Cpu;
use crate::backend::gpu::Gpu;
use crate::matrix::Dtype;
use cpu::OnCpu;
use gpu::OnGpu;

/// Result of a measurement.
pub type Result<T> = std::result::Result<T, Error>;

/// Which cases to measure; nothing chosen is everything.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Kernels.
    pub kernels: Vec<Kernel>,
    /// Shapes, in place of each kernel's own.
    pub sizes: Vec<Size>,
    /// Stored types.
    pub dtypes: Vec<Dtype>,
}

/// A device that can be measured.
pub enum Device<'a> {
    /// The CPU backend.
    Cpu(&'a Cpu),
    /// An adapter, opened with [`features`].
    Gpu(&'a Gpu),
}

/// What an adapter is asked for if it has it, so that it keeps the time itself.
pub fn features() -> wgpu::Features {
    wgpu::Features::TIMESTAMP_QUERY
}

/// What [`run`] says while it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// The work ahead, before any of it.
    Planned {
        /// How many cases; fewer where the device turns out to be too slow for some.
        cases: usize,
        /// How long they will take, about.
        seconds: f64,
    },
    /// What is measured next.
    Next(&'a str),
}

/// Seconds that a case takes beside those that it is measured for: operands and pipelines are made, a first run is not counted.
const PREPARATION: f64 = 0.4;

/// Measures the peaks and then every case, `seconds` long each or for three samples, and tells what it does.
///
/// # Errors
/// If a chosen size does not fit any chosen kernel, or the device fails.
pub async fn run(
    device: Device<'_>,
    selection: &Selection,
    seconds: f64,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Report> {
    match device {
        Device::Cpu(cpu) => measure(&mut OnCpu::new(cpu), selection, seconds, tell).await,
        Device::Gpu(gpu) => measure(&mut OnGpu::new(gpu), selection, seconds, tell).await,
    }
}

/// A device under measurement.
#[allow(async_fn_in_trait)] // futures are driven on the calling thread
trait Subject {
    /// Adapter and driver.
    fn name(&self) -> String;

    /// Who keeps the time of kernels; that of algorithms is the host's.
    fn clock(&self) -> &'static str;

    /// The least that a sample of a case should last, in seconds.
    fn resolution(&self, case: &Case) -> f64;

    async fn peak(&mut self, seconds: f64) -> Result<Peak>;

    /// Gets the operands of a case ready.
    async fn prepare(&mut self, case: &Case) -> Result<()>;

    /// Runs the case that is ready so many times; the seconds that took.
    async fn time(&mut self, repetitions: usize) -> Result<f64>;

    /// Runs the case that is ready, for the first time; what it read and wrote. Nothing if none is ready.
    async fn once(&mut self) -> Result<Option<check::Ran>>;
}

async fn measure(
    subject: &mut impl Subject,
    selection: &Selection,
    seconds: f64,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Report> {
    let chosen = cases(selection)?;
    let (count, peaks) = (chosen.len(), 2.0 * seconds);
    tell(Event::Planned { cases: count, seconds: peaks + count as f64 * (seconds + PREPARATION) });
    tell(Event::Next("the peaks"));
    let peak = subject.peak(seconds).await?;
    // Without a wish for a size, what would run for long even at the peak is left out.
    let affordable = |case: &&Case| !selection.sizes.is_empty() || case.is_affordable(peak);
    let mut results = Vec::new();
    for case in chosen.iter().filter(affordable) {
        tell(Event::Next(&case.to_string()));
        results.push(one(subject, case, seconds).await?);
    }
    Ok(Report::new(subject.name(), subject.clock(), peak, results))
}

/// Checks a case, then times it.
async fn one(subject: &mut impl Subject, case: &Case, seconds: f64) -> Result<Measurement> {
    subject.prepare(case).await?;
    let error = subject.once().await?.map(|ran| check::error(case, &ran));
    let times = sampling::sample(subject, case, seconds).await?;
    Ok(Measurement::new(case, times, error))
}

/// The cases of a selection.
///
/// # Errors
/// If a chosen size does not fit any chosen kernel.
pub fn cases(selection: &Selection) -> Result<Vec<Case>> {
    case::choose(selection)
}

/// Measures piece by piece, where whoever asks wants to hear of each, or to stop between them.
pub struct Bench<'a>(OnGpu<'a>);

impl<'a> Bench<'a> {
    /// On an adapter, opened with [`features`].
    pub fn new(gpu: &'a Gpu) -> Self {
        Bench(OnGpu::new(gpu))
    }

    /// Who keeps the time of kernels; that of algorithms is the host's.
    pub fn clock(&self) -> &'static str {
        self.0.clock()
    }

    /// What the device can do at most.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn peak(&mut self, seconds: f64) -> Result<Peak> {
        self.0.peak(seconds).await
    }

    /// One case, and its error against float64.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn measure(&mut self, case: &Case, seconds: f64) -> Result<Measurement> {
        one(&mut self.0, case, seconds).await
    }
}
