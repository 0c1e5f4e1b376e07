//! A case as naga understands it, with its overrides resolved: what wgpu makes of it before it writes a language.

use crate::Result;
use crate::cases::Case;
use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};

/// The module with one entry point.
pub fn resolve(case: &Case) -> Result<(Module, ModuleInfo)> {
    let wrong = |text: String| format!("{}: {text}", case.name);
    let parsed =
        naga::front::wgsl::parse_str(&case.source).map_err(|e| wrong(e.emit_to_string(&case.source)))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&parsed)
        .map_err(|e| wrong(e.emit_to_string(&case.source)))?;
    let entry = Some((ShaderStage::Compute, case.entry.as_str()));
    let constants = case.constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    let (module, info) = process_overrides(&parsed, &info, entry, &constants)?;
    Ok((module.into_owned(), info.into_owned()))
}
