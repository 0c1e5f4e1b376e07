//! The GPU backend: wgpu and the WGSL kernels of [`crate::kernels`].
//!
//! [`Gpu`] queues every operation and submits in batches; a large operation is cut so that no operand exceeds the
//! adapter's binding size and no dispatch runs long enough to alarm a driver's watchdog.

mod adapter;
mod attention;
mod context;
mod download;
mod fault;
mod layers;
mod operations;
mod pace;
mod pool;
mod products;
mod profile;
mod promise;
mod queue;
mod recovery;
mod reductions;
mod selection;
mod self_test;
mod split;
mod staging;
mod tensor;
mod tuning;

pub use adapter::AdapterSummary;
#[doc(hidden)]
pub use fault::{Fault, FaultKind};
pub use layers::GpuSegments;
pub use pace::Pace;
pub use profile::Profile;
pub use tensor::GpuTensor;
pub use tuning::{Tuned, cache_folder};

use super::{Error, Result};
use crate::kernels::{Checks, LARGEST_EIGENPROBLEM, Products};
use context::Context;
use pool::Pool;
use queue::Queue;
use recovery::Origin;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tuning::Tuner;

/// How to open a device. The defaults are right but for tests and for odd drivers.
#[derive(Clone, Debug)]
pub struct Config {
    /// Limits to ask for instead of all that the adapter has, where they are lower.
    pub limits: Option<wgpu::Limits>,
    /// Whether shaders check their own indices.
    pub checks: Checks,
    /// How products are computed; by default as suits the adapter's type.
    pub products: Option<Products>,
    /// Features to ask for where the adapter has them. The backend needs none.
    pub features: wgpu::Features,
    /// Whether products are timed to find how each class of them is best computed, instead of taking the built-in table's
    /// word.
    pub autotune: Option<Autotune>,
    /// [`Backend::largest_eigenproblem`](super::Backend::largest_eigenproblem); by default as suits the adapter's type.
    pub largest_eigenproblem: Option<usize>,
    /// Whether subgroup operations are used where the adapter has them and they pass a test.
    pub subgroups: bool,
    /// Whether the device widens float16 itself where it can and passes a test.
    pub half_floats: bool,
    /// [`Pace::dispatch_flops`]; by default as suits the device's speed.
    pub dispatch_flops: Option<u64>,
    /// [`Pace::submit_flops`]; by default as suits the device's speed.
    pub submit_flops: Option<u64>,
    /// [`Pace::batch_bytes`]; by default as suits the device's speed.
    pub batch_bytes: Option<u64>,
    /// Whether every dispatch is timed, where the adapter has timestamps inside of passes. The host waits for each submission then.
    pub profile: bool,
    /// How long a submission may take before the device is taken for hung. Browsers have a watchdog of their own.
    pub patience: Duration,
    /// What goes wrong, for tests of what comes of it.
    #[doc(hidden)]
    pub fault: Option<Fault>,
}

/// [`Config::patience`]: submissions take about 150 ms on a device whose speed was measured.
const PATIENCE: Duration = Duration::from_secs(300);

/// How [`Config::autotune`] remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Autotune {
    /// The folder of the cache, such as [`cache_folder`] gives; without one nothing is kept.
    pub folder: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            limits: None,
            checks: Checks::default(),
            products: None,
            features: wgpu::Features::empty(),
            autotune: None,
            largest_eigenproblem: None,
            subgroups: true,
            half_floats: true,
            dispatch_flops: None,
            submit_flops: None,
            batch_bytes: None,
            profile: false,
            patience: PATIENCE,
            fault: None,
        }
    }
}

/// A GPU, and everything queued on it. Single-threaded, like the tensors it makes.
pub struct Gpu {
    live: RefCell<Rc<Live>>,
    /// How to open the device again if it is lost; none for another program's device.
    origin: Option<Origin>,
    /// Bytes above which a tensor should not grow; less after memory ran out.
    slice_bytes: Cell<u64>,
    /// How often memory ran out: batches are half as large each time.
    shortages: Cell<u32>,
    /// How often something else went wrong that was worth another try.
    tries: Cell<u32>,
}

/// An open device with its queue and its memory.
struct Live {
    pool: Rc<Pool>,
    queue: Queue,
    context: Rc<Context>,
    tuner: Option<Tuner>,
    pace: Pace,
    largest_eigenproblem: usize,
}

/// [`Config::largest_eigenproblem`] of software, which shares its processor with the solver on the host; no other device has so small a
/// one, unless it is configured to behave like software.
const ON_SOFTWARE: usize = 128;

impl Live {
    fn new(context: Context, config: &Config) -> Rc<Self> {
        let context = Rc::new(context);
        let by_default = if context.is_software() { ON_SOFTWARE } else { LARGEST_EIGENPROBLEM };
        let pace = context.pace.with(config);
        let tuner = |tune: &Autotune| Tuner::open(&context.info, &context.kernels, tune.folder.as_deref());
        Rc::new(Live {
            queue: Queue::new(Rc::clone(&context), pace.submit_flops, config.profile),
            pool: Rc::new(Pool::new(Rc::clone(&context))),
            tuner: config.autotune.as_ref().map(tuner),
            pace,
            largest_eigenproblem: config.largest_eigenproblem.unwrap_or(by_default).min(LARGEST_EIGENPROBLEM),
            context,
        })
    }
}

impl Gpu {
    /// Every adapter of this machine, software ones included.
    pub async fn list() -> Vec<AdapterSummary> {
        adapter::all().await.iter().map(AdapterSummary::new).collect()
    }

    /// Opens a device: the best hardware adapter, or the best whose name, driver or API contains `selector` (upper and
    /// lower case are the same). A software adapter has to be named.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] if none answers, [`Error::NoDevice`] if its driver refuses.
    pub async fn open(selector: Option<&str>) -> Result<Self> {
        Self::open_with(selector, &Config::default()).await
    }

    /// Like [`open`](Gpu::open), with a configuration.
    ///
    /// # Errors
    /// As for [`open`](Gpu::open).
    pub async fn open_with(selector: Option<&str>, config: &Config) -> Result<Self> {
        let origin = Origin::new(selector, config);
        Ok(Self::of(Live::new(origin.open(config).await?, config), Some(origin)))
    }

    /// A backend on a device that is open already, such as another program's. `config.limits` does not matter then. The
    /// device's handler of uncaptured errors and its lost callback are replaced. If it is lost, it stays so.
    pub fn with_device(device: wgpu::Device, queue: wgpu::Queue, config: &Config) -> Self {
        Self::of(Live::new(Context::new(device, queue, config), config), None)
    }

    fn of(live: Rc<Live>, origin: Option<Origin>) -> Self {
        Gpu {
            live: RefCell::new(live),
            origin,
            slice_bytes: Cell::new(u64::MAX),
            shortages: Cell::new(0),
            tries: Cell::new(0),
        }
    }

    fn live(&self) -> Rc<Live> {
        Rc::clone(&self.live.borrow())
    }

    /// The limits the device was opened with.
    pub fn limits(&self) -> wgpu::Limits {
        self.live().context.kernels.limits().clone()
    }

    /// How much the device is given at once.
    pub fn pace(&self) -> Pace {
        self.live().pace
    }

    /// Bytes of device memory held, in use or kept for reuse.
    pub fn allocated_bytes(&self) -> u64 {
        self.live().pool.allocated_bytes()
    }

    /// The most bytes of device memory that were held at once since the device was opened.
    pub fn peak_bytes(&self) -> u64 {
        self.live().pool.peak_bytes()
    }

    /// Gives memory kept for reuse back to the driver.
    pub fn trim(&self) {
        self.live().pool.trim();
    }

    /// The device, to share its buffers with other work. Its error handler and lost callback are the backend's.
    pub fn device(&self) -> wgpu::Device {
        self.live().context.device.clone()
    }

    /// Whether sums go through subgroup operations.
    pub fn subgroups(&self) -> bool {
        self.live().context.kernels.subgroups()
    }

    /// Whether the device widens float16 itself.
    pub fn half_floats(&self) -> bool {
        self.live().context.kernels.half_floats()
    }

    /// Maps a buffer for reading.
    #[cfg(feature = "bench")]
    pub(crate) async fn map(&self, buffer: &wgpu::Buffer) -> Result<()> {
        let live = self.live();
        download::map(&live.context, buffer).await
    }

    /// The device's queue, for commands that go past the backend's own.
    #[cfg(feature = "bench")]
    pub(crate) fn queue(&self) -> wgpu::Queue {
        self.live().context.queue.clone()
    }

    /// Does something with the kernels of the device.
    #[cfg(feature = "bench")]
    pub(crate) fn with_kernels<R>(&self, run: impl FnOnce(&crate::kernels::Kernels) -> R) -> R {
        run(&self.live().context.kernels)
    }

    /// Waits until all that was submitted is done, and says what went wrong.
    #[cfg(feature = "bench")]
    pub(crate) async fn settled(&self) -> Result<()> {
        let live = self.live();
        live.context.settled().await
    }

    /// How often the host has waited for numbers from the device since it was opened.
    pub fn read_backs(&self) -> u64 {
        self.live().queue.read_backs()
    }

    /// Where the device's time went, with [`Config::profile`] where the adapter has a clock inside of passes.
    pub fn profile(&self) -> Option<Profile> {
        self.live().queue.profile()
    }

    /// Dispatches recorded since the device was opened.
    pub fn dispatches(&self) -> u64 {
        self.live().queue.dispatches()
    }

    /// Submissions since the device was opened.
    pub fn submissions(&self) -> u64 {
        self.live().queue.submissions()
    }

    /// Submits everything queued and reads the first `bytes` of a buffer.
    async fn read(&self, buffer: &wgpu::Buffer, bytes: usize) -> Result<Vec<u8>> {
        let [values] = self.read_all([(buffer, bytes)]).await?;
        Ok(values)
    }
}
