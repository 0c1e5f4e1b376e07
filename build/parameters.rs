//! Rust structs for the parameters of shaders, made of what the shaders declare: none is written twice.

use naga::{AddressSpace, Module, Scalar, ScalarKind, TypeInner};
use std::collections::HashMap;

/// The structs of all shaders. Those that are alike are one, so that kernels can choose among shaders that share parameters.
#[derive(Default)]
pub struct Parameters {
    /// Names of structs by their fields.
    known: HashMap<String, String>,
    /// Their text.
    pub text: String,
}

impl Parameters {
    /// Adds the struct of a shader and gives its name.
    pub fn add(&mut self, shader: &str, module: &Module) -> Result<String, String> {
        let name = camel(shader);
        let fields = fields(module).map_err(|what| format!("{shader}.wgsl: {what}"))?;
        if let Some(first) = self.known.get(&fields) {
            self.text += &format!("/// Of `{shader}.wgsl`.\npub(crate) type {name} = {first};\n");
        } else {
            self.known.insert(fields.clone(), name.clone());
            self.text += &format!(
                "/// Of `{shader}.wgsl`.\n#[repr(C)]\n#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]\n\
                 pub(crate) struct {name} {{\n{fields}}}\n"
            );
        }
        Ok(name)
    }
}

/// The fields of the uniform struct, all numbers of 32 bits: without gaps there, and so in Rust.
fn fields(module: &Module) -> Result<String, String> {
    let mut uniforms =
        module.global_variables.iter().filter(|(_, global)| global.space == AddressSpace::Uniform);
    let (Some((_, uniform)), None) = (uniforms.next(), uniforms.next()) else {
        return Err("there is not one uniform".into());
    };
    let TypeInner::Struct { members, span } = &module.types[uniform.ty].inner else {
        return Err("the uniform is no struct".into());
    };
    if *span != 4 * members.len() as u32 {
        return Err("the parameters have gaps".into());
    }
    let field = |member: &naga::StructMember| {
        let name = member.name.as_deref().unwrap_or_default();
        let rust = match module.types[member.ty].inner {
            TypeInner::Scalar(Scalar { kind: ScalarKind::Uint, width: 4 }) => "u32",
            TypeInner::Scalar(Scalar { kind: ScalarKind::Sint, width: 4 }) => "i32",
            TypeInner::Scalar(Scalar { kind: ScalarKind::Float, width: 4 }) => "f32",
            _ => return Err(format!("parameter `{name}` is no number of 32 bits")),
        };
        Ok(format!("    pub {name}: {rust},\n"))
    };
    members.iter().map(field).collect()
}

/// `copy_block` as `CopyBlock`.
fn camel(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').filter(|word| !word.is_empty()).map(capital).collect()
}
