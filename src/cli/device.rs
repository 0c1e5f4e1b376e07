//! Which device computes.

use super::args::RunFlags;
use super::progress::Display;
use crate::backend::Error;
use crate::backend::cpu::Cpu;
use crate::backend::gpu::{Config, Gpu};
use crate::pipeline::Progress;
use crate::report::{Profile, Report};
use std::str::FromStr;

/// The value of `--device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeviceChoice {
    /// A hardware GPU, else the CPU.
    Auto,
    Cpu,
    /// The best hardware GPU, or the adapter with this in its name.
    Gpu(Option<String>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(DeviceChoice::Auto),
            None if text == "cpu" => Ok(DeviceChoice::Cpu),
            None if text == "gpu" => Ok(DeviceChoice::Gpu(None)),
            Some(("gpu", name)) if !name.is_empty() => Ok(DeviceChoice::Gpu(Some(name.to_owned()))),
            _ => Err("use auto, cpu, gpu or gpu:NAME (`esmerge devices` lists the names)".to_owned()),
        }
    }
}

/// A device that is ready.
pub(super) enum Device {
    Cpu(Cpu),
    Gpu(Box<Gpu>),
}

impl Device {
    /// Adds what the device's time went to, if that was asked.
    pub fn add_profile(&self, flags: &RunFlags, report: &mut Report, display: &mut Display) {
        report.profile = match self {
            Device::Cpu(_) => None,
            Device::Gpu(gpu) => Profile::of(gpu),
        };
        if flags.profile && report.profile.is_none() {
            display.warn(&format!("--profile: {} has no clock inside of its passes", report.device));
        }
    }
}

impl DeviceChoice {
    /// Opens the device. Only `auto` turns to the CPU where there is no GPU; the second value says why, if a GPU was there
    /// but refused.
    pub fn open(&self) -> Result<(Device, Option<String>), Error> {
        self.open_with(&Config::default())
    }

    /// [`open`](DeviceChoice::open), a GPU with a configuration.
    pub fn open_with(&self, config: &Config) -> Result<(Device, Option<String>), Error> {
        let gpu = |selector| Ok(Device::Gpu(Box::new(pollster::block_on(Gpu::open_with(selector, config))?)));
        match self {
            DeviceChoice::Cpu => Ok((Device::Cpu(Cpu), None)),
            DeviceChoice::Gpu(selector) => Ok((gpu(selector.as_deref())?, None)),
            DeviceChoice::Auto => match gpu(None) {
                Ok(device) => Ok((device, None)),
                Err(Error::NoAdapter(_)) => Ok((Device::Cpu(Cpu), None)),
                Err(error) => Ok((Device::Cpu(Cpu), Some(format!("the CPU is used, because {error}")))),
            },
        }
    }
}

/// Runs an expression with `$backend` bound to the backend of a [`Device`].
macro_rules! on_device {
    ($device:expr, |$backend:ident| $body:expr) => {
        match $device {
            $crate::cli::device::Device::Cpu($backend) => $body,
            $crate::cli::device::Device::Gpu(gpu) => {
                let $backend = &**gpu;
                $body
            }
        }
    };
}
pub(super) use on_device;
