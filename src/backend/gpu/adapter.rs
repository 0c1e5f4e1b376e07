//! Which GPUs there are, and which one to take.

use super::{Error, Result};
use std::fmt;

/// What there is to know about an adapter before it is opened.
#[derive(Clone, Debug)]
pub struct AdapterSummary {
    /// The adapter's name, as its driver gives it.
    pub name: String,
    /// Discrete, integrated, virtual, or software.
    pub kind: wgpu::DeviceType,
    /// The API it is reached through.
    pub api: wgpu::Backend,
    /// The driver and its version.
    pub driver: String,
    /// Bytes of the largest buffer.
    pub max_buffer_size: u64,
    /// Bytes of the largest part of a buffer that a kernel can see at once.
    pub max_binding_size: u64,
}

impl AdapterSummary {
    pub(super) fn new(adapter: &wgpu::Adapter) -> Self {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        AdapterSummary {
            name: info.name,
            kind: info.device_type,
            api: info.backend,
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            max_buffer_size: limits.max_buffer_size,
            max_binding_size: limits.max_storage_buffer_binding_size,
        }
    }

    /// Whether it is a program that plays a GPU.
    pub fn is_software(&self) -> bool {
        self.kind == wgpu::DeviceType::Cpu
    }

    /// Whether the text occurs in the name, the driver or the API.
    fn matches(&self, selector: &str) -> bool {
        let selector = selector.to_lowercase();
        [&self.name, &self.driver, &self.api.to_string()]
            .iter()
            .any(|text| text.to_lowercase().contains(&selector))
    }

    /// Smaller is better.
    fn rank(&self) -> u8 {
        match self.kind {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        }
    }
}

impl fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        };
        write!(f, "{} ({kind}, {}, {})", self.name, self.api, self.driver)
    }
}

/// Every adapter of this machine.
pub(super) async fn all() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    instance.enumerate_adapters(wgpu::Backends::all()).await
}

/// The best adapter that answers to the selector, or, without one, the best that is hardware.
pub(super) async fn choose(selector: Option<&str>) -> Result<wgpu::Adapter> {
    let found: Vec<_> = all().await.into_iter().map(|a| (AdapterSummary::new(&a), a)).collect();
    let list: Vec<String> = found.iter().map(|(summary, _)| summary.to_string()).collect();
    let suits = |summary: &AdapterSummary| selector.map_or(!summary.is_software(), |s| summary.matches(s));
    let best =
        found.into_iter().filter(|(summary, _)| suits(summary)).min_by_key(|(summary, _)| summary.rank());
    best.map(|(_, adapter)| adapter)
        .ok_or_else(|| Error::NoAdapter(nothing_found(selector, &list.join("; "))))
}

fn nothing_found(selector: Option<&str>, list: &str) -> String {
    let wanted = match selector {
        Some(selector) => format!("no GPU matches \"{selector}\""),
        None => "there is no hardware GPU".to_owned(),
    };
    if list.is_empty() {
        format!("{wanted}; this machine has no adapter at all (is a Vulkan, Metal or DX12 driver installed?)")
    } else {
        format!("{wanted}; this machine has: {list}")
    }
}
