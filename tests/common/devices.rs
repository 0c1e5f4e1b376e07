//! The devices of this machine: the CPU, and every adapter a driver offers. `ESMERGE_DEVICE` restricts them (`cpu`,
//! `gpu`, `gpu:llvmpipe`).

#![allow(dead_code)] // each test binary uses some of these

use esmerge::backend::cpu::Cpu;
use esmerge::backend::gpu::{Config, Gpu};
use esmerge::backend::layers::Layers;
use esmerge::kernels::Checks;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

/// A device to test on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The CPU backend.
    Cpu,
    /// An adapter, by the part of its name that selects it.
    Gpu(String),
    /// A GPU that was asked for, or hoped for, but is not here.
    Absent(String),
}

/// Something to do on a device.
pub trait Work {
    /// What comes of it.
    type Output;

    /// Does it.
    fn run<B: Layers>(self, backend: &B) -> Self::Output;
}

impl Device {
    /// Whether it can be opened.
    pub fn present(&self) -> bool {
        !matches!(self, Device::Absent(_))
    }

    /// Runs something on the device, with shaders that check their indices.
    pub fn with<W: Work>(&self, work: W) -> W::Output {
        match self {
            Device::Cpu => work.run(&Cpu),
            _ => work.run(self.gpu("checked", || Config { checks: Checks::On, ..Config::default() })),
        }
    }

    /// The adapter opened with a configuration, once per thread and name of the configuration.
    pub fn gpu(&self, name: &'static str, config: impl FnOnce() -> Config) -> &'static Gpu {
        thread_local! {
            static OPEN: RefCell<HashMap<(String, &'static str), &'static Gpu>> = RefCell::default();
        }
        let Device::Gpu(selector) = self else { panic!("{self} is no GPU") };
        OPEN.with_borrow_mut(|open| {
            *open.entry((selector.clone(), name)).or_insert_with(|| {
                let gpu = pollster::block_on(Gpu::open_with(Some(selector), &config()));
                // Leaked: a driver does not like to be unloaded while its thread ends.
                Box::leak(Box::new(gpu.unwrap_or_else(|error| panic!("{error}"))))
            })
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Gpu(selector) => write!(f, "gpu:{}", selector.to_lowercase().replace(' ', "-")),
            Device::Absent(name) => f.write_str(name),
        }
    }
}

/// Every device that `ESMERGE_DEVICE` admits.
pub fn for_each_device() -> Vec<Device> {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(find).clone()
}

fn find() -> Vec<Device> {
    let wanted = std::env::var("ESMERGE_DEVICE").unwrap_or_default().to_lowercase();
    let mut devices = vec![Device::Cpu];
    for adapter in pollster::block_on(Gpu::list()) {
        // "SwiftShader Device (LLVM 10.0.0)": the rest is of no interest
        let name = adapter.name.split('(').next().unwrap_or_default().trim_end_matches(" Device").trim();
        let gpu = Device::Gpu(name.trim_end_matches(" Device").to_owned());
        if !devices.contains(&gpu) {
            devices.push(gpu);
        }
    }
    if devices.len() == 1 {
        devices.push(Device::Absent("gpu".into()));
    }
    devices.retain(|device| wanted.is_empty() || device.to_string().starts_with(&wanted));
    if devices.is_empty() {
        devices.push(Device::Absent(wanted));
    }
    devices
}
