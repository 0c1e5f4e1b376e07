//! Puts every shader together, parses and validates it, so that a mistake in one fails the build with its file, line and
//! message, and lists them for `src/kernels`.
//!
//! A line `//# include parts/x.wgsl` is replaced by that file. With `parts/x_{one,two}.wgsl` there are two shaders: one of
//! the file's own name, with `parts/x_one.wgsl`, and `NAME_two` with `parts/x_two.wgsl`.

use naga::valid::{Capabilities, ValidationFlags, Validator};
use std::{env, fs, path::Path, process::Command, process::exit};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=shaders");
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let commit = commit(Path::new(&root)).map(|commit| format!(" ({commit})")).unwrap_or_default();
    println!("cargo:rustc-env=ESMERGE_VERSION={}{commit}", env::var("CARGO_PKG_VERSION").unwrap_or_default());

    let mut paths: Vec<_> = fs::read_dir(Path::new(&root).join("shaders"))
        .expect("the shaders folder is readable")
        .map(|entry| entry.expect("the shaders folder is readable").path())
        .filter(|path| path.extension().is_some_and(|e| e == "wgsl"))
        .collect();
    paths.sort();

    let composed = Path::new(&out).join("shaders");
    fs::create_dir_all(&composed).expect("OUT_DIR is writable");
    let mut list = String::new();
    let mut failed = false;
    for path in &paths {
        for (name, source) in variants(path) {
            match check(&source, &name) {
                Ok(()) => {
                    let file = composed.join(format!("{name}.wgsl"));
                    fs::write(&file, source).expect("OUT_DIR is writable");
                    list += &entry(&name, &file);
                }
                Err(message) => {
                    eprintln!("{message}");
                    failed = true;
                }
            }
        }
    }
    if failed {
        exit(1);
    }
    fs::write(Path::new(&out).join("shaders.rs"), list).expect("OUT_DIR is writable");
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

const INCLUDE: &str = "//# include ";

/// Names and sources of the shaders that a file makes.
fn variants(path: &Path) -> Vec<(String, String)> {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let text = read(path);
    let choices = text.lines().filter(|line| line.starts_with(INCLUDE)).find_map(alternatives);
    let Some(choices) = choices else { return vec![(name, compose(path, &text, ""))] };
    let named = |(i, choice): (usize, &String)| {
        let suffix = if i == 0 { String::new() } else { format!("_{choice}") };
        (name.clone() + &suffix, compose(path, &text, choice))
    };
    choices.iter().enumerate().map(named).collect()
}

/// What stands between braces.
fn alternatives(line: &str) -> Option<Vec<String>> {
    let (_, rest) = line.split_once('{')?;
    let (inside, _) = rest.split_once('}')?;
    Some(inside.split(',').map(|choice| choice.trim().to_owned()).collect())
}

/// The text with its includes.
fn compose(path: &Path, text: &str, choice: &str) -> String {
    let folder = path.parent().expect("a shader is in a folder");
    let line = |line: &str| match line.strip_prefix(INCLUDE) {
        Some(part) => match (part.split_once('{'), part.split_once('}')) {
            (Some((before, _)), Some((_, after))) => {
                read(&folder.join(format!("{before}{choice}{}", after.trim())))
            }
            _ => read(&folder.join(part.trim())),
        },
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// `naga`'s message, with an excerpt of the source, if the shader does not parse or is not valid.
fn check(source: &str, name: &str) -> Result<(), String> {
    let name = format!("{name}.wgsl");
    let module =
        naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string_with_path(source, &name))?;
    let capabilities = match name.rsplit_once('_') {
        Some((_, "subgroup.wgsl")) => Capabilities::SUBGROUP,
        Some((_, "f16.wgsl")) => Capabilities::SHADER_FLOAT16,
        _ => Capabilities::empty(),
    };
    Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| e.emit_to_string_with_path(source, &name))?;
    Ok(())
}

/// The constant through which `src/kernels` names the shader.
fn entry(name: &str, file: &Path) -> String {
    format!(
        "pub(crate) const {}: Shader = Shader {{ name: {name:?}, source: include_str!({:?}) }};\n",
        name.to_uppercase(),
        file.display().to_string()
    )
}
