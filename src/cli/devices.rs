use super::args;
use super::failure::Failure;
use super::{output, terminal};
use crate::backend::gpu::{AdapterSummary, Gpu};
use crate::backend::{Backend, cpu::Cpu};
use crate::report::wrapped;
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
        output::print(&wrapped(&format!("gpu  {adapter}"), terminal::width()).replacen("gpu ", "gpu  ", 1));
        if adapter.is_software() {
            output::print("     software: used only by name, --device gpu:NAME");
        }
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
