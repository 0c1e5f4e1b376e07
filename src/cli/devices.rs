use super::args;
use super::failure::Failure;
use super::output;
use crate::backend::gpu::{AdapterSummary, Gpu};
use crate::backend::{Backend, cpu::Cpu};
use serde_json::{Value, json};

/// `esmerge devices`
pub(super) fn run(args: &args::Devices) -> Result<(), Failure> {
    let adapters = pollster::block_on(Gpu::list());
    if args.json {
        let cpu = json!({ "device": "cpu", "name": Cpu.name() });
        let devices: Vec<Value> = std::iter::once(cpu).chain(adapters.iter().map(describe)).collect();
        output::print(&serde_json::to_string_pretty(&devices)?);
        return Ok(());
    }
    output::print(&format!("cpu  {}", Cpu.name()));
    for adapter in &adapters {
        let note = if adapter.is_software() { "  used only by name: --device gpu:NAME" } else { "" };
        output::print(&format!("gpu  {adapter}{note}"));
    }
    Ok(())
}

fn describe(adapter: &AdapterSummary) -> Value {
    json!({
        "device": "gpu",
        "name": adapter.name,
        "backend": adapter.api.to_string(),
        "driver": adapter.driver,
        "software": adapter.is_software(),
        "max_buffer_bytes": adapter.max_buffer_size,
        "max_binding_bytes": adapter.max_binding_size,
    })
}
