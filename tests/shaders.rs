//! Every shader translates to the languages of Vulkan, Metal and DX12: that is how those are checked without such a
//! machine.

use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};
use std::path::PathBuf;

fn shaders() -> Vec<(String, Module, ModuleInfo)> {
    let folder = PathBuf::from(env!("OUT_DIR")).join("shaders");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("shaders/ is readable") {
        let path = entry.expect("shaders/ is readable").path();
        let source = std::fs::read_to_string(&path).expect("a shader is readable");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let module = naga::front::wgsl::parse_str(&source).expect("it parses");
        let capabilities = match name.rsplit_once('_') {
            Some((_, "subgroup")) => Capabilities::SUBGROUP,
            Some((_, "f16")) => Capabilities::SHADER_FLOAT16,
            _ => Capabilities::empty(),
        };
        let info =
            Validator::new(ValidationFlags::all(), capabilities).validate(&module).expect("it is valid");
        found.push((name, module, info));
    }
    assert!(found.len() > 10);
    found
}

/// Calls `translate` for every entry point, with the overrides at their defaults.
fn for_each_entry_point(translate: impl Fn(&str, &str, &Module, &ModuleInfo)) {
    for (name, module, info) in shaders() {
        for entry in &module.entry_points {
            let stage = Some((ShaderStage::Compute, entry.name.as_str()));
            let (module, info) = process_overrides(&module, &info, stage, &Default::default())
                .expect("overrides have defaults");
            translate(&name, &entry.name, &module, &info);
        }
    }
}

#[test]
fn a_shader_has_an_entry_point_of_its_name_or_several() {
    for (name, module, _) in shaders() {
        let names: Vec<_> = module.entry_points.iter().map(|e| e.name.as_str()).collect();
        assert!(names.len() > 1 || name.starts_with(names[0]), "{name}: {names:?}");
    }
}

#[test]
fn every_shader_translates_to_spirv() {
    for_each_entry_point(|name, entry, module, info| {
        let pipeline =
            spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: entry.to_owned() };
        let words = spv::write_vec(module, info, &spv::Options::default(), Some(&pipeline));
        assert!(!words.unwrap_or_else(|e| panic!("{name}/{entry}: {e}")).is_empty());
    });
}

#[test]
fn every_shader_translates_to_metal() {
    for_each_entry_point(|name, entry, module, info| {
        let options =
            msl::Options { lang_version: (2, 1), fake_missing_bindings: true, ..Default::default() };
        let pipeline = msl::PipelineOptions {
            entry_point: Some((ShaderStage::Compute, entry.to_owned())),
            ..Default::default()
        };
        let text = msl::write_string(module, info, &options, &pipeline);
        assert!(text.unwrap_or_else(|e| panic!("{name}/{entry}: {e}")).0.contains("kernel void"));
    });
}

#[test]
fn every_shader_translates_to_hlsl() {
    for_each_entry_point(|name, entry, module, info| {
        let mut options = hlsl::Options { fake_missing_bindings: true, ..Default::default() };
        if name.ends_with("_f16") {
            options.shader_model = hlsl::ShaderModel::V6_2; // the first with 16-bit floats
        }
        let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, entry.to_owned())) };
        let mut text = String::new();
        let written = hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None);
        written.unwrap_or_else(|e| panic!("{name}/{entry}: {e}"));
        assert!(text.contains("numthreads"));
    });
}
