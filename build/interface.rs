//! What Rust must know of a shader, made of what the shader declares: nothing is written twice, and a mistake does not compile.
//! A shader becomes a module of its name, with the struct of its parameters (`Params`), a constant for each entry point, structs
//! of the buffers that entry points bind, and its constants and overrides.

use naga::valid::ModuleInfo;
use naga::{AddressSpace, Expression, Handle, Literal, Module, Scalar, ScalarKind, StorageAccess, TypeInner};
use std::collections::{BTreeSet, HashMap};

/// The modules of all shaders. Structs that are alike are one, so that kernels can choose among shaders that share them.
#[derive(Default)]
pub struct Interfaces {
    /// Where structs are, by their fields.
    known: HashMap<String, String>,
    /// Names of overrides.
    names: BTreeSet<String>,
    /// The modules' text.
    text: String,
}

/// A buffer that an entry point uses.
struct Storage {
    number: u32,
    name: String,
    written: bool,
}

impl Interfaces {
    /// Adds the module of a shader that lies in `file`.
    pub fn add(
        &mut self,
        shader: &str,
        file: &str,
        module: &Module,
        info: &ModuleInfo,
    ) -> Result<(), String> {
        let wrong = |what| format!("{shader}.wgsl: {what}");
        let mut text = format!(
            "pub const SHADER: super::Shader = super::Shader {{ name: {shader:?}, source: include_str!({file:?}) }};\n"
        );
        text += &self.structure(shader, "Params", "", &parameters(module).map_err(wrong)?);
        text += &self.entry_points(shader, module, info).map_err(wrong)?;
        text += &constants(module);
        text += &self.overrides(shader, module);
        self.text += &format!("/// Of `{shader}.wgsl`.\npub(crate) mod {shader} {{\n{text}}}\n");
        Ok(())
    }

    /// The modules of all shaders, and a type for each name that an override has.
    pub fn finish(self) -> String {
        let names: String = self.names.iter().map(|name| format!("pub enum {name} {{}}\n")).collect();
        format!("{}/// What overrides are called.\npub(crate) mod names {{\n{names}}}\n", self.text)
    }

    /// A struct with these fields, or the name of another that has them.
    fn structure(&mut self, shader: &str, name: &str, generics: &str, fields: &str) -> String {
        if let Some(first) = self.known.get(fields) {
            return format!("pub use super::{first} as {name};\n");
        }
        self.known.insert(fields.into(), format!("{shader}::{name}"));
        let (attributes, methods) = match generics {
            "" => ("#[repr(C)]\n#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]", String::new()),
            _ => ("#[derive(Clone, Copy)]", bound(name, fields)),
        };
        format!("{attributes}\npub struct {name}{generics} {{\n{fields}}}\n{methods}")
    }

    /// A constant for each, that takes a struct of its buffers: `Bindings`, or one of its own name where not all use the same.
    fn entry_points(&mut self, shader: &str, module: &Module, info: &ModuleInfo) -> Result<String, String> {
        let mut text = String::new();
        let used: Vec<_> = (0..module.entry_points.len()).map(|i| storage(module, info, i)).collect();
        let fields: Vec<_> = used.iter().map(|storage| buffers(storage)).collect();
        let alike = fields.iter().all(|other| *other == fields[0]);
        if alike {
            text += &self.structure(shader, "Bindings", "<'a>", &fields[0]);
        }
        for ((entry, storage), fields) in module.entry_points.iter().zip(&used).zip(&fields) {
            let bindings = if alike { "Bindings".into() } else { camel(&entry.name) };
            if !alike {
                text += &self.structure(shader, &bindings, "<'a>", fields);
            }
            let (kind, workgroup) = workgroup(module, entry)?;
            let numbers: Vec<_> = storage.iter().map(|it| (it.number, it.written)).collect();
            let (constant, name) = (entry.name.to_uppercase(), &entry.name);
            text += &format!(
                "pub const {constant}: super::Entry<Params, {bindings}<'static>, {kind}, Overrides> = \
                 super::Entry::new(SHADER, {name:?}, &{numbers:?}, {workgroup});\n"
            );
        }
        Ok(text)
    }
}

impl Interfaces {
    /// The type that says which overrides a shader has, and those of them that do not follow from others.
    fn overrides(&mut self, shader: &str, module: &Module) -> String {
        let settable = |(handle, it): (Handle<naga::Override>, &naga::Override)| {
            let found = (it.name.clone()?, rust(module, it.ty)?);
            is_settable(module, handle).then_some(found)
        };
        let found: BTreeSet<_> = module.overrides.iter().filter_map(settable).collect();
        let (mut constants, mut taken) = (String::new(), String::new());
        for (name, rust) in &found {
            let key = camel(&name.to_lowercase());
            let of = format!("super::names::{key}, {rust}");
            constants +=
                &format!("pub const {name}: super::Override<{of}> = super::Override::new({name:?});\n");
            taken += &format!("impl super::Takes<{of}> for Overrides {{}}\n");
            self.names.insert(key);
        }
        // shaders whose overrides are alike are alike to those who set them
        match self.known.get(&taken) {
            Some(first) => format!("pub use super::{first} as Overrides;\n{constants}"),
            None => {
                self.known.insert(taken.clone(), format!("{shader}::Overrides"));
                format!("pub enum Overrides {{}}\n{taken}{constants}")
            }
        }
    }
}

/// The fields of the uniform struct, all numbers of 32 bits: without gaps there, and so in Rust.
fn parameters(module: &Module) -> Result<String, String> {
    let mut uniforms =
        module.global_variables.iter().filter(|(_, global)| global.space == AddressSpace::Uniform);
    let (Some((_, uniform)), None) = (uniforms.next(), uniforms.next()) else {
        return Err("there is not one uniform".into());
    };
    if uniform.binding.is_none_or(|at| (at.group, at.binding) != (0, 0)) {
        return Err("the uniform is not binding 0 of group 0".into());
    }
    let TypeInner::Struct { members, span } = &module.types[uniform.ty].inner else {
        return Err("the uniform is no struct".into());
    };
    if *span != 4 * members.len() as u32 {
        return Err("the parameters have gaps".into());
    }
    let field = |member: &naga::StructMember| {
        let name = member.name.as_deref().unwrap_or_default();
        let rust = rust(module, member.ty).filter(|&rust| rust != "bool");
        let rust = rust.ok_or_else(|| format!("parameter `{name}` is no number of 32 bits"))?;
        Ok(format!("    pub {name}: {rust},\n"))
    };
    members.iter().map(field).collect()
}

/// The buffers that an entry point uses, by number.
fn storage(module: &Module, info: &ModuleInfo, entry: usize) -> Vec<Storage> {
    let info = info.get_entry_point(entry);
    let mut found = Vec::new();
    for (handle, global) in module.global_variables.iter() {
        if let (AddressSpace::Storage { access }, Some(at)) = (global.space, &global.binding)
            && !info[handle].is_empty()
        {
            found.push(Storage {
                number: at.binding,
                name: global.name.clone().unwrap_or_default(),
                written: access.contains(StorageAccess::STORE),
            });
        }
    }
    found.sort_by_key(|it| it.number);
    found
}

/// Buffers as fields.
fn buffers(storage: &[Storage]) -> String {
    let field = |it: &Storage| {
        let window = if it.written { "WindowMut" } else { "Window" };
        format!("    pub {}: super::{window}<'a>,\n", it.name)
    };
    storage.iter().map(field).collect()
}

/// What makes a struct of buffers one that can be bound.
fn bound(name: &str, fields: &str) -> String {
    let window = |field: &str| {
        let (name, window) = field.trim().strip_prefix("pub ")?.split_once(':')?;
        let of_both = if window.contains("WindowMut") { ".0" } else { "" };
        Some(format!("self.{name}{of_both}, "))
    };
    let windows: String = fields.lines().filter_map(window).collect();
    format!(
        "impl<'a> super::Bind<'a> for {name}<'a> {{\n    fn windows(self) -> Vec<super::Window<'a>> {{ vec![{windows}] }}\n}}\n"
    )
}

/// Threads of a workgroup, in Rust: their type and value. A number; an override that the host may set; or nothing, where it follows
/// from overrides.
fn workgroup(module: &Module, entry: &naga::EntryPoint) -> Result<(String, String), String> {
    if entry.workgroup_size[1..] != [1, 1] {
        return Err(format!("the workgroup of `{}` is no row of threads", entry.name));
    }
    let Some([Some(size), None, None]) = entry.workgroup_size_overrides else {
        return match entry.workgroup_size_overrides {
            None => Ok(("u32".into(), entry.workgroup_size[0].to_string())),
            Some(_) => Err(format!("the workgroup of `{}` is no row of threads", entry.name)),
        };
    };
    match module.global_expressions[size] {
        Expression::Override(handle) if is_settable(module, handle) => {
            let name = module.overrides[handle].name.clone().unwrap_or_default();
            Ok((format!("super::Override<super::names::{}, u32>", camel(&name.to_lowercase())), name))
        }
        _ => Ok(("()".into(), "()".into())),
    }
}

/// The constants that are integers: sizes and codes.
fn constants(module: &Module) -> String {
    let constant = |(_, constant): (_, &naga::Constant)| {
        let name = constant.name.as_deref()?;
        match module.global_expressions[constant.init] {
            Expression::Literal(Literal::U32(value)) => Some(format!("pub const {name}: u32 = {value};\n")),
            _ => None,
        }
    };
    module.constants.iter().filter_map(constant).collect()
}

fn is_settable(module: &Module, handle: Handle<naga::Override>) -> bool {
    let value = module.overrides[handle].init.map(|init| &module.global_expressions[init]);
    matches!(value, None | Some(Expression::Literal(_) | Expression::Constant(_)))
}

/// The Rust type of a number or truth value.
fn rust(module: &Module, ty: Handle<naga::Type>) -> Option<&'static str> {
    match module.types[ty].inner {
        TypeInner::Scalar(Scalar::BOOL) => Some("bool"),
        TypeInner::Scalar(Scalar { kind: ScalarKind::Uint, width: 4 }) => Some("u32"),
        TypeInner::Scalar(Scalar { kind: ScalarKind::Sint, width: 4 }) => Some("i32"),
        TypeInner::Scalar(Scalar { kind: ScalarKind::Float, width: 4 }) => Some("f32"),
        _ => None,
    }
}

/// `copy_block` as `CopyBlock`.
fn camel(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').filter(|word| !word.is_empty()).map(capital).collect()
}
