//! Parses and validates every shader, so that a mistake in one fails the build with its file, line and message, and
//! lists them for `src/kernels`.

use naga::valid::{Capabilities, ValidationFlags, Validator};
use std::{env, fs, path::Path, process::exit};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=shaders");
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");

    let mut paths: Vec<_> = fs::read_dir(Path::new(&root).join("shaders"))
        .expect("the shaders folder is readable")
        .map(|entry| entry.expect("the shaders folder is readable").path())
        .filter(|path| path.extension().is_some_and(|e| e == "wgsl"))
        .collect();
    paths.sort();

    let mut list = String::new();
    let mut failed = false;
    for path in &paths {
        let source = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match check(&source, &file) {
            Ok(()) => list += &entry(path),
            Err(message) => {
                eprintln!("{message}");
                failed = true;
            }
        }
    }
    if failed {
        exit(1);
    }
    fs::write(Path::new(&out).join("shaders.rs"), list).expect("OUT_DIR is writable");
}

/// `naga`'s message, with an excerpt of the file, if the shader does not parse or is not valid.
fn check(source: &str, file: &str) -> Result<(), String> {
    let name = format!("shaders/{file}");
    let module =
        naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string_with_path(source, &name))?;
    Validator::new(ValidationFlags::all(), Capabilities::empty())
        .validate(&module)
        .map_err(|e| e.emit_to_string_with_path(source, &name))?;
    Ok(())
}

/// The constant through which `src/kernels` names the shader.
fn entry(path: &Path) -> String {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    format!(
        "pub(crate) const {}: Shader = Shader {{ name: {name:?}, source: include_str!({:?}) }};\n",
        name.to_uppercase(),
        path.display().to_string()
    )
}
