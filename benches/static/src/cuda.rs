//! A shader as CUDA, by way of what naga writes of it for Metal: that is C++ but for its vectors, which `cuda.h` has, and for how an
//! entry point learns its place and its buffers.

use crate::Result;
use crate::cases::Case;
use crate::shader;
use naga::back::msl;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy::Unchecked};

const HEADER: &str = include_str!("cuda.h");

/// Of what Metal tells an entry point, by attribute.
const PLACES: [(&str, &str); 7] = [
    ("[[threadgroup_position_in_grid]]", "{blockIdx.x, blockIdx.y, blockIdx.z}"),
    ("[[threadgroups_per_grid]]", "{gridDim.x, gridDim.y, gridDim.z}"),
    ("[[thread_index_in_threadgroup]]", "{threadIdx.x}"),
    ("[[thread_index_in_simdgroup]]", "{threadIdx.x % 32}"),
    ("[[simdgroup_index_in_threadgroup]]", "{threadIdx.x / 32}"),
    ("[[simdgroups_per_threadgroup]]", "{blockDim.x / 32}"),
    ("[[threads_per_simdgroup]]", "{32}"),
];

pub fn write(case: &Case) -> Result<String> {
    let (module, info) = shader::resolve(case)?;
    let options = msl::Options {
        lang_version: (2, 1),
        bounds_check_policies: BoundsCheckPolicies {
            index: Unchecked,
            buffer: Unchecked,
            image_load: Unchecked,
            binding_array: Unchecked,
        },
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((naga::ShaderStage::Compute, case.entry.clone())),
        ..Default::default()
    };
    let (metal, _) = msl::write_string(&module, &info, &options, &pipeline)?;
    let line = |line: &str| match line {
        _ if line.starts_with("#include") => String::new(),
        // an array of as many elements as its buffer has
        _ if line.starts_with("typedef ") => line.replace("[1];", "[1 << 28];"),
        _ => line.to_owned(),
    };
    let metal: Vec<_> = metal.lines().map(line).collect();
    Ok(format!("{HEADER}\n{}", expressions(&entry_point(&metal.join("\n"))?)))
}

/// With the entry point as CUDA has them: buffers come as pointers, parameters by value, and places are asked for.
fn entry_point(metal: &str) -> Result<String> {
    let parts = || {
        let (before, entry) = metal.split_once("[[max_total_threads_per_threadgroup(")?;
        let (threads, entry) = entry.split_once(")]] kernel void ")?;
        let (name, entry) = entry.split_once('(')?;
        let (parameters, body) = entry.split_once(") {\n")?;
        Some((before, threads, name, parameters, body))
    };
    let (before, threads, name, parameters, body) = parts().ok_or("no entry point in naga's text")?;
    let (mut taken, mut declared) = (Vec::new(), String::new());
    for parameter in parameters.lines().map(|line| line.trim_start_matches(", ").trim()) {
        if let Some((place, value)) = PLACES.iter().find(|(place, _)| parameter.ends_with(place)) {
            declared += &format!("{} = {value};\n", parameter.trim_end_matches(place));
            continue;
        }
        let parameter = parameter.split("[[").next().unwrap_or_default().trim();
        let Some((kind, rest)) = parameter.split_once(' ') else { continue };
        let (ty, name) = rest.rsplit_once("& ").ok_or_else(|| format!("what is `{parameter}`?"))?;
        match kind {
            "threadgroup" => declared += &format!("__shared__ {ty} {name};\n"),
            "device" => {
                taken.push(format!("{ty}* __restrict__ {name}_"));
                declared += &format!("{ty}& {name} = *{name}_;\n");
            }
            "constant" => taken.push(format!("const __grid_constant__ {ty} {name}")),
            _ => return Err(format!("what is `{parameter}`?").into()),
        }
    }
    let taken = taken.join(", ");
    Ok(format!(
        "{before}extern \"C\" __global__ void __launch_bounds__({threads}) {name}({taken}) {{\n{declared}{body}"
    ))
}

/// Numbers with a point as f32, as Metal takes them, and parts of vectors as calls.
fn expressions(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_number = first.is_ascii_digit() && !out.ends_with(is_word);
        let len = match first {
            _ if is_number => rest.find(|c: char| !is_word(c) && c != '.'),
            _ if is_word(first) => rest.find(|c| !is_word(c)),
            _ => Some(first.len_utf8()),
        };
        let (mut word, mut after) = rest.split_at(len.unwrap_or(rest.len()));
        if is_number && word.ends_with('e') {
            let exponent = 1 + after[1..].find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len() - 1);
            (word, after) = rest.split_at(word.len() + exponent);
        }
        let is_part = out.ends_with('.') && word.len() > 1 && word.chars().all(|c| "xyzw".contains(c));
        out += word;
        if is_part {
            out += "()";
        } else if is_number && word.contains(['.', 'e']) && !word.starts_with("0x") {
            out += "f";
        }
        rest = after;
    }
    out
}
