//! Claims that hold on every device: a function each, run once per device under its own name.

#![allow(dead_code)] // each test binary uses some of these

use super::devices::{Device, Work, for_each_device};
use libtest_mimic::{Arguments, Failed, Trial};
use std::thread::available_parallelism;

/// Declares claims as `async fn name(backend) { ... }`, generic over the backend, and the trials of all of them on given
/// devices, `claims_on`, and on every device, `claims`.
#[macro_export]
macro_rules! claims {
    ($(async fn $name:ident($backend:ident) $body:block)*) => {
        $(async fn $name<B: esmerge::backend::Backend>($backend: &B) -> esmerge::backend::Result<()> $body)*

        #[allow(dead_code)]
        pub fn claims() -> Vec<libtest_mimic::Trial> {
            claims_on(&$crate::devices::for_each_device())
        }

        pub fn claims_on(devices: &[$crate::devices::Device]) -> Vec<libtest_mimic::Trial> {
            let mut trials = Vec::new();
            $({
                #[derive(Clone, Copy)]
                struct Claim;
                impl $crate::devices::Work for Claim {
                    type Output = esmerge::backend::Result<()>;
                    fn run<B: esmerge::backend::Backend>(self, backend: &B) -> Self::Output {
                        pollster::block_on($name(backend))
                    }
                }
                trials.extend(devices.iter().map(|device| $crate::claims::on(device, stringify!($name), Claim)));
            })*
            trials
        }
    };
}

/// A claim's trial on a device; ignored, by name, where the device is not there.
pub fn on<W>(device: &Device, name: &str, claim: W) -> Trial
where
    W: Work<Output = esmerge::backend::Result<()>> + Copy + Send + 'static,
{
    let (full_name, absent, device) = (format!("{device}/{name}"), !device.present(), device.clone());
    Trial::test(full_name, move || device.with(claim).map_err(Failed::from)).with_ignored_flag(absent)
}

/// A claim's trials on every device.
pub fn on_every_device<W>(name: &str, claim: W) -> Vec<Trial>
where
    W: Work<Output = esmerge::backend::Result<()>> + Copy + Send + 'static,
{
    for_each_device().iter().map(|device| on(device, name, claim)).collect()
}

/// How many trials a suite has at least. A group of them that filters itself away is missed here.
#[derive(Clone, Copy, Default)]
pub struct Stated {
    /// On the CPU.
    pub cpu: usize,
    /// On an adapter, all ways to open it together; where there is none, so many are counted as ignored.
    pub adapter: usize,
    /// On no device in particular.
    pub besides: usize,
}

/// Threads, unless `--test-threads` says otherwise.
const MOST_THREADS: usize = 4;

/// Runs trials as a test binary does, and one more: that none of those stated is missing.
pub fn run(mut trials: Vec<Trial>, stated: Stated) -> ! {
    let missing = missing(&trials, stated);
    let check = move || if missing.is_empty() { Ok(()) } else { Err(missing.join("; ").into()) };
    trials.push(Trial::test("no_trial_is_missing", check));
    let mut arguments = Arguments::from_args();
    // Every thread opens an adapter in each of its ways, and drivers give a process no more than some dozens of devices.
    arguments
        .test_threads
        .get_or_insert_with(|| available_parallelism().map_or(1, usize::from).min(MOST_THREADS));
    libtest_mimic::run(&arguments, trials).exit()
}

/// A line for every device with fewer trials than are stated.
fn missing(trials: &[Trial], stated: Stated) -> Vec<String> {
    let counted = |device: &Device| {
        let name = device.to_string();
        let own = trials.iter().filter(|trial| device_of(trial) == Some(&name));
        // one that is ignored on a device that is here says why, in brackets
        own.filter(|t| !t.has_ignored_flag() || !device.present() || t.name().ends_with(']')).count()
    };
    let mut counts = vec![(
        "no device".to_owned(),
        stated.besides,
        trials.iter().filter(|t| device_of(t).is_none()).count(),
    )];
    for device in for_each_device() {
        let least = if device == Device::Cpu { stated.cpu } else { stated.adapter };
        counts.push((device.to_string(), least, counted(&device)));
    }
    let short = counts.into_iter().filter(|(_, least, count)| count < least);
    short
        .map(|(device, least, count)| format!("{device}: {count} trials, where {least} are stated"))
        .collect()
}

/// The device that a trial's name begins with.
fn device_of(trial: &Trial) -> Option<&str> {
    let (device, _) = trial.name().split_once('/')?;
    device.split('+').next()
}
