//! What computes: the browser's adapter, or the processor through WebAssembly.

use crate::{Result, json, words};
use esmerge::backend::cpu::Cpu;
use esmerge::backend::gpu::{Config, Gpu};
use serde_json::json;
use std::cell::RefCell;
use std::rc::Rc;
use wasm_bindgen::prelude::*;

/// A device that is ready.
pub enum Device {
    Cpu(Cpu),
    Gpu(Rc<Gpu>),
}

/// Runs an expression with `$backend` bound to the backend of a [`Device`].
macro_rules! on_device {
    ($device:expr, |$backend:ident| $body:expr) => {
        match $device {
            $crate::device::Device::Cpu($backend) => $body,
            $crate::device::Device::Gpu($backend) => {
                let $backend = &**$backend;
                $body
            }
        }
    };
}
pub(crate) use on_device;

thread_local! {
    static GPU: RefCell<Option<Rc<Gpu>>> = const { RefCell::new(None) };
}

/// The adapter, opened once.
pub async fn gpu() -> Result<Rc<Gpu>> {
    if let Some(gpu) = GPU.with_borrow(Clone::clone) {
        return Ok(gpu);
    }
    let config = Config { features: esmerge::bench::features(), ..Config::default() };
    // a browser has one adapter, whatever it is
    let gpu = Rc::new(Gpu::open_with(Some(""), &config).await.map_err(words)?);
    GPU.set(Some(Rc::clone(&gpu)));
    Ok(gpu)
}

/// `cpu`, or the adapter.
pub async fn device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu(Cpu)),
        _ => Ok(Device::Gpu(gpu().await?)),
    }
}

/// Opens the adapter and says what it is, as JSON.
#[wasm_bindgen]
pub async fn open_gpu() -> Result<String> {
    let gpu = gpu().await?;
    let (summary, limits, device) = (Gpu::list().await, gpu.limits(), gpu.device());
    let adapter = summary.first().map(ToString::to_string);
    json(&json!({
        "adapter": adapter,
        "clock": if device.features().contains(esmerge::bench::features()) { "device" } else { "host" },
        "subgroups": gpu.subgroups(),
        "half_floats": gpu.half_floats(),
        "pace": gpu.pace().to_string(),
        "limits": {
            "largest buffer": limits.max_buffer_size,
            "largest binding": limits.max_storage_buffer_binding_size,
            "workgroup memory": limits.max_compute_workgroup_storage_size,
            "threads of a workgroup": limits.max_compute_invocations_per_workgroup,
            "workgroups of a dispatch": limits.max_compute_workgroups_per_dimension,
            "storage buffers of a kernel": limits.max_storage_buffers_per_shader_stage,
        },
    }))
}

/// Takes the adapter away, as a driver does that fails; whether there was one.
#[wasm_bindgen]
pub fn lose_gpu() -> bool {
    GPU.with_borrow(|gpu| gpu.as_ref().map(|gpu| gpu.device().destroy()).is_some())
}

/// Closes the adapter; the next use opens it again.
#[wasm_bindgen]
pub fn close_gpu() {
    GPU.set(None);
}
