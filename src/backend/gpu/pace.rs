//! How much a device is given at once. A hardware device is timed when it is opened, and taken for one of a few classes, so coarse
//! that the same device is always in the same one: how sums are cut follows from it.

use super::context::Context;
use super::{Config, Result};
use crate::host::Instant;
use crate::kernels::{View, peak_fma, peak_fma_flops};
use crate::matrix::Shape;
use std::fmt;
use std::time::Duration;

/// How much a device is given at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Floating-point operations a second of the device's class.
    pub flops: u64,
    /// Operations of one dispatch, about: a twentieth of a second, so that no driver's watchdog is alarmed.
    pub dispatch_flops: u64,
    /// Operations of one submission, about: three dispatches.
    pub submit_flops: u64,
    /// [`Backend::batch_bytes`](crate::backend::Backend::batch_bytes)
    pub batch_bytes: u64,
}

/// From one class to the next.
const STEP: u64 = 4;

/// Operations a second of the classes. The first is for what is slower still.
const CLASSES: [u64; 7] = {
    let mut classes = [12_500_000_000; 7];
    let mut i = 1;
    while i < classes.len() {
        classes[i] = classes[i - 1] * STEP;
        i += 1;
    }
    classes
};

/// The class of devices that are not timed: software, and those of other programs.
const UNTIMED: u64 = CLASSES[2];

/// Batches of an untimed device.
const SMALLEST_BATCH: u64 = 64 << 20;

/// Threads of the probe: enough for the widest device.
const THREADS: usize = 1 << 16;

/// A probe this long is long enough.
const PROBE: Duration = Duration::from_millis(1);

/// No probe has more rounds.
const MOST_ROUNDS: u32 = 1 << 12;

impl Pace {
    /// Of a class.
    fn of_class(flops: u64) -> Pace {
        // A wide device needs large batches to be busy; a slow one is busy with small ones.
        let batch_bytes = SMALLEST_BATCH * (flops / UNTIMED).isqrt().max(1);
        Pace { flops, dispatch_flops: flops / 20, submit_flops: 3 * flops / 20, batch_bytes }
    }

    /// Of a device that is not timed.
    pub(super) fn untimed() -> Pace {
        Pace::of_class(UNTIMED)
    }

    /// Of a device that makes so many operations a second.
    fn of_speed(flops: f64) -> Pace {
        let class = CLASSES.into_iter().rfind(|&class| class as f64 <= flops);
        Pace::of_class(class.unwrap_or(CLASSES[0]))
    }

    /// Of a device that was just opened.
    pub(super) async fn measured(context: &Context) -> Result<Pace> {
        if context.is_software() {
            return Ok(Pace::untimed());
        }
        Ok(Pace::of_speed(speed(context).await?))
    }

    /// With what a configuration says in its place.
    pub(super) fn with(self, config: &Config) -> Pace {
        Pace {
            dispatch_flops: config.dispatch_flops.unwrap_or(self.dispatch_flops).max(1),
            submit_flops: config.submit_flops.unwrap_or(self.submit_flops).max(1),
            batch_bytes: config.batch_bytes.unwrap_or(self.batch_bytes),
            ..self
        }
    }

    /// Tiles of a product that keep the device busy: about five for each TFLOP/s, two for each of a large GPU's processors.
    pub(super) fn enough_tiles(&self) -> usize {
        (5 * self.flops / 1_000_000_000_000) as usize
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:e} operations a second: {:e} a dispatch, {:e} a submission, batches of {} MiB",
            self.flops,
            self.dispatch_flops,
            self.submit_flops,
            self.batch_bytes >> 20
        )
    }
}

/// Multiply-adds alone, ever more of them until they take long enough for the clock.
async fn speed(context: &Context) -> Result<f64> {
    let out = context.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("the probe's results"),
        size: 4 * THREADS as u64,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let view = View::packed(&out, Shape::matrix(1, THREADS));
    let run = async |rounds: u32| -> Result<Duration> {
        let mut encoder = context.device.create_command_encoder(&Default::default());
        let encoded = peak_fma(&mut context.kernels.record(&mut encoder), rounds, &view);
        encoded.map_err(|e| super::Error::Internal(e.to_string()))?;
        let start = Instant::now();
        context.queue.submit([encoder.finish()]);
        context.settled().await?;
        Ok(start.elapsed())
    };
    run(1).await?; // compiles, and wakes the device
    let mut rounds = 1;
    loop {
        let time = run(rounds).await?;
        if time >= PROBE || rounds >= MOST_ROUNDS {
            return Ok(peak_fma_flops(rounds, THREADS) / time.as_secs_f64());
        }
        rounds *= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_given_a_twentieth_of_a_second_at_once() {
        for flops in [1e12, 8e12, 60e12] {
            let pace = Pace::of_speed(flops);
            let seconds = pace.dispatch_flops as f64 / flops;
            assert!((0.05 / 4.0..=0.05).contains(&seconds), "{flops:e}: {seconds}");
            assert_eq!(pace.submit_flops, 3 * pace.dispatch_flops);
        }
    }

    #[test]
    fn speeds_that_differ_a_little_are_one_class_and_none_is_too_slow_for_one() {
        assert_eq!(Pace::of_speed(55e12), Pace::of_speed(66e12));
        assert_eq!(Pace::of_speed(0.0), Pace::of_class(CLASSES[0]));
        assert_eq!(Pace::of_speed(f64::NAN), Pace::of_class(CLASSES[0]));
        assert_eq!(Pace::of_speed(f64::INFINITY).flops, CLASSES[6]);
    }

    #[test]
    fn a_wide_device_gets_batches_of_a_gibibyte_and_software_what_it_had() {
        assert_eq!(Pace::of_speed(60e12).batch_bytes, 1 << 30);
        let software = Pace::untimed();
        assert_eq!((software.dispatch_flops, software.batch_bytes), (10_000_000_000, 64 << 20));
        assert_eq!(software.submit_flops, 30_000_000_000);
    }

    #[test]
    fn what_a_configuration_says_holds() {
        let config = Config { dispatch_flops: Some(7), batch_bytes: Some(5), ..Config::default() };
        let pace = Pace::untimed().with(&config);
        assert_eq!((pace.dispatch_flops, pace.batch_bytes), (7, 5));
        assert_eq!(pace.submit_flops, Pace::untimed().submit_flops);
    }
}
