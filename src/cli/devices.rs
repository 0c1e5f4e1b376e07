use super::args;
use super::failure::Failure;
use super::output;
use crate::backend::{Backend, cpu::Cpu};

/// `esmerge devices`
pub(super) fn run(args: &args::Devices) -> Result<(), Failure> {
    let name = Cpu.name();
    if args.json {
        let devices = serde_json::json!([{ "device": "cpu", "name": name }]);
        output::print(&serde_json::to_string_pretty(&devices)?);
    } else {
        output::print(&format!("cpu  {name}"));
    }
    Ok(())
}
