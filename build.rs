//! Puts every shader together, parses and validates it, so that a mistake in one fails the build with its file, line and
//! message, and writes for `src/kernels` what Rust must know of them.

#[path = "build/compose.rs"]
mod compose;
#[path = "build/interface.rs"]
mod interface;

use naga::Module;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use std::{env, fs, path::Path, process::Command, process::exit};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=shaders");
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let commit = commit(Path::new(&root)).map(|commit| format!(" ({commit})")).unwrap_or_default();
    println!("cargo:rustc-env=ESMERGE_VERSION={}{commit}", env::var("CARGO_PKG_VERSION").unwrap_or_default());

    let composed = Path::new(&out).join("shaders");
    fs::create_dir_all(&composed).expect("OUT_DIR is writable");
    let mut interfaces = interface::Interfaces::default();
    let mut failed = false;
    for path in compose::files(&Path::new(&root).join("shaders")) {
        for (name, source) in compose::variants(&path) {
            let file = composed.join(format!("{name}.wgsl"));
            let added = check(&source, &name)
                .and_then(|(module, info)| interfaces.add(&name, &file.to_string_lossy(), &module, &info));
            fs::write(&file, source).expect("OUT_DIR is writable");
            if let Err(message) = added {
                eprintln!("{message}");
                failed = true;
            }
        }
    }
    if failed {
        exit(1);
    }
    fs::write(Path::new(&out).join("shaders.rs"), interfaces.finish()).expect("OUT_DIR is writable");
}

/// The commit that is built: of the repository whose root this is, or the one that a package was made of.
fn commit(root: &Path) -> Option<String> {
    let packaged = root.join(".cargo_vcs_info.json");
    if let Ok(text) = fs::read_to_string(packaged) {
        let (_, after) = text.split_once("\"sha1\"")?;
        return after.split('"').nth(1).map(|sha| sha.chars().take(9).collect());
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(root).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if fs::canonicalize(top).ok()? != fs::canonicalize(root).ok()? {
        return None; // some other project's
    }
    // written to at every commit and checkout
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={}", root.join(log).display());
    }
    git(&["describe", "--always", "--exclude=*", "--abbrev=9"])
}

/// The shader; or `naga`'s message, with an excerpt of the source, if it does not parse or is not valid.
fn check(source: &str, name: &str) -> Result<(Module, ModuleInfo), String> {
    let name = format!("{name}.wgsl");
    let module =
        naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string_with_path(source, &name))?;
    let capabilities = match name.rsplit_once('_') {
        Some((_, "subgroup.wgsl")) => Capabilities::SUBGROUP,
        Some((_, "f16.wgsl")) => Capabilities::SHADER_FLOAT16,
        _ => Capabilities::empty(),
    };
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| e.emit_to_string_with_path(source, &name))?;
    Ok((module, info))
}
