//! Claims that hold on every device: a function each, run once per device under its own name.

#![allow(dead_code)] // each test binary uses some of these

use super::devices::{Device, Work, for_each_device};
use libtest_mimic::{Arguments, Failed, Trial};

/// Declares claims as `async fn name(backend) { ... }`, generic over the backend, and `fn claims() -> Vec<Trial>`.
#[macro_export]
macro_rules! claims {
    ($(async fn $name:ident($backend:ident) $body:block)*) => {
        $(async fn $name<B: esmerge::backend::Backend>($backend: &B) -> esmerge::backend::Result<()> $body)*

        fn claims() -> Vec<libtest_mimic::Trial> {
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
                trials.extend($crate::claims::on_every_device(stringify!($name), Claim));
            })*
            trials
        }
    };
}

/// A trial for each device; ignored, by name, where the device is not there.
pub fn on_every_device<W>(name: &str, claim: W) -> Vec<Trial>
where
    W: Work<Output = esmerge::backend::Result<()>> + Copy + Send + 'static,
{
    let trial = |device: Device| {
        let absent = !device.present();
        let run = move || device.with(claim).map_err(Failed::from);
        (absent, run)
    };
    for_each_device()
        .into_iter()
        .map(|device| {
            let full_name = format!("{device}/{name}");
            let (absent, run) = trial(device);
            Trial::test(full_name, run).with_ignored_flag(absent)
        })
        .collect()
}

/// Runs trials as a test binary does.
pub fn run(trials: Vec<Trial>) {
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
