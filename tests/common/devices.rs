//! The devices of this machine: the CPU, and every adapter a driver offers. `ESMERGE_DEVICE` restricts them (`cpu`,
//! `gpu`, `gpu:llvmpipe`).

#![allow(dead_code)] // each test binary uses some of these

use esmerge::backend::cpu::Cpu;
use esmerge::backend::gpu::{Config, Gpu};
use esmerge::backend::layers::Layers;
use esmerge::kernels::{Checks, Products};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

/// A device to test on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The CPU backend.
    Cpu,
    /// An adapter, by the part of its name that selects it, and how to open it.
    Gpu(String, Variant),
    /// A GPU that was asked for, or hoped for, but is not here.
    Absent(String),
}

/// Ways to open an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// As it is, with shaders that check their indices.
    Checked,
    /// As a release build opens it.
    Unchecked,
    /// With the products and the eigenproblems of hardware GPUs, which software adapters do not get by themselves, and without
    /// subgroups and 16-bit floats.
    Tiled,
    /// With bindings and dispatches so small that the tests' matrices have to be cut.
    Small,
}

impl Variant {
    fn config(self) -> Config {
        let config = Config { checks: Checks::On, ..Config::default() };
        match self {
            Variant::Checked => config,
            Variant::Unchecked => Config { checks: Checks::Off, ..config },
            Variant::Tiled => Config {
                checks: Checks::Off,
                products: Some(Products::Tiled),
                largest_eigenproblem: Some(usize::MAX),
                subgroups: false,
                half_floats: false,
                ..config
            },
            Variant::Small => Config {
                limits: Some(wgpu::Limits {
                    max_storage_buffer_binding_size: 288 << 10,
                    max_buffer_size: 16 << 20,
                    max_compute_workgroups_per_dimension: 300,
                    ..wgpu::Limits::defaults()
                }),
                dispatch_flops: Some(1_000_000),
                submit_flops: Some(5_000_000),
                ..config
            },
        }
    }
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

    /// Runs something on the device.
    pub fn with<W: Work>(&self, work: W) -> W::Output {
        match self {
            Device::Cpu => work.run(&Cpu),
            _ => work.run(self.gpu()),
        }
    }

    /// The open adapter, once per thread.
    pub fn gpu(&self) -> &'static Gpu {
        thread_local! {
            static OPEN: RefCell<HashMap<String, &'static Gpu>> = RefCell::default();
        }
        let Device::Gpu(selector, variant) = self else { panic!("{self} is no GPU") };
        OPEN.with_borrow_mut(|open| {
            *open.entry(self.to_string()).or_insert_with(|| {
                let gpu = pollster::block_on(Gpu::open_with(Some(selector), &variant.config()));
                // Leaked: a driver does not like to be unloaded while its thread ends.
                Box::leak(Box::new(gpu.unwrap_or_else(|error| panic!("{error}"))))
            })
        })
    }

    /// The same adapter opened in another way.
    pub fn opened(&self, variant: Variant) -> Device {
        match self {
            Device::Gpu(selector, _) => Device::Gpu(selector.clone(), variant),
            other => other.clone(),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Gpu(selector, variant) => {
                write!(f, "gpu:{}", selector.to_lowercase().replace(' ', "-"))?;
                match variant {
                    Variant::Checked => Ok(()),
                    other => write!(f, "+{}", format!("{other:?}").to_lowercase()),
                }
            }
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
        let name = adapter.name.split('(').next().unwrap_or_default().trim().trim_end_matches(" Device");
        let gpu = Device::Gpu(name.to_owned(), Variant::Checked);
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
