//! Which device computes.

use crate::backend;
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
    Cpu(backend::cpu::Cpu),
}

impl DeviceChoice {
    /// Opens the device.
    pub fn open(&self) -> Result<Device, backend::Error> {
        match self {
            DeviceChoice::Auto | DeviceChoice::Cpu => Ok(Device::Cpu(backend::cpu::Cpu)),
            DeviceChoice::Gpu(name) => {
                let name = name.as_deref().unwrap_or("any");
                Err(backend::Error::NoAdapter(format!("no GPU adapter `{name}` was found; use --device cpu")))
            }
        }
    }
}

/// Runs an expression with `$backend` bound to the backend of a [`Device`].
macro_rules! on_device {
    ($device:expr, |$backend:ident| $body:expr) => {
        match $device {
            $crate::cli::device::Device::Cpu($backend) => $body,
        }
    };
}
pub(super) use on_device;
