//! Claims that hold on every device: a function each, run once per device under its own name.

#![allow(dead_code)] // each test binary uses some of these

use super::devices::{Device, Work, for_each_device};
use libtest_mimic::{Arguments, Failed, Trial};

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

/// Runs trials as a test binary does.
pub fn run(trials: Vec<Trial>) {
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
