//! SPIR-V as wgpu makes it: no run-time checks, overrides resolved, workgroup memory not cleared.

use crate::Result;
use crate::cases::Case;
use crate::shader;
use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy::Unchecked};

/// A shader with one entry point.
pub struct Module {
    pub words: Vec<u32>,
    pub entry: String,
    /// Numbers of its bindings, and whether they are uniform.
    pub bindings: Vec<(u32, bool)>,
}

pub fn compile(case: &Case) -> Result<Module> {
    let (module, info) = shader::resolve(case)?;
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::LABEL_VARYINGS,
        bounds_check_policies: BoundsCheckPolicies {
            index: Unchecked,
            buffer: Unchecked,
            image_load: Unchecked,
            binding_array: Unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let pipeline =
        spv::PipelineOptions { entry_point: case.entry.clone(), shader_stage: naga::ShaderStage::Compute };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline))?;
    let globals = module.global_variables.iter().filter_map(|(_, global)| {
        global.binding.as_ref().map(|b| (b.binding, global.space == naga::AddressSpace::Uniform))
    });
    let mut bindings: Vec<_> = globals.collect();
    bindings.sort_unstable();
    Ok(Module { words, entry: case.entry.clone(), bindings })
}
