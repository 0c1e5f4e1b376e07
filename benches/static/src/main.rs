//! Compiles every pipeline for GPUs that are not here: with a Vulkan driver and no hardware under it, or with NVIDIA's compiler. What
//! comes of it is held against limits and against what was kept. `scripts/gpu-static` runs it, once for each family of GPUs.

mod assembly;
mod cases;
#[path = "../../../build/compose.rs"]
mod compose;
mod cuda;
mod driver;
mod nvidia;
mod report;
mod sass;
mod shader;
mod spirv;
mod table;

use report::Report;
use std::path::Path;
use std::process::exit;

/// Anything that went wrong, as a line to print.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() {
    let code = match run() {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            eprintln!("error: {error}");
            2
        }
    };
    // No tidy end: the driver does not survive one without a device.
    exit(code);
}

/// Whether all is as good as it was.
fn run() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, family, keep) = match &arguments[..] {
        [folder, family] => (folder, family, false),
        [folder, family, flag] if flag == "--keep" => (folder, family, true),
        _ => return Err("usage: static FOLDER FAMILY|PAGE [--keep], from scripts/gpu-static".into()),
    };
    if family.ends_with(".md") {
        return table::hold(Path::new(folder), Path::new(family), keep);
    }
    let found = compile(family)?;
    print!("{}", found.table());
    let path = Path::new(folder).join(format!("{}.json", family.to_lowercase()));
    if keep {
        found.write(&path)?;
        println!("kept in {}", path.display());
    }
    let complaints = found.complaints(Report::read(&path)?.as_ref());
    complaints.iter().for_each(|complaint| println!("{family}: {complaint}"));
    Ok(complaints.is_empty())
}

/// By NVIDIA's compiler for its architectures, which are called SM_*, and for all others by the one Vulkan driver that is there.
fn compile(family: &str) -> Result<Report> {
    let cases = cases::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shaders"))?;
    let wrong = |case: &cases::Case, e| format!("{}: {e}", case.name);
    let mut found;
    if family.starts_with("SM_") {
        let pieces = std::env::var("GPU_STATIC_NVIDIA").map_err(|e| format!("GPU_STATIC_NVIDIA: {e}"))?;
        let compiler = nvidia::Compiler::open(Path::new(&pieces), family)?;
        found = Report::new(family, compiler.version()?);
        for case in &cases {
            found.add(case, &compiler.compile(case).map_err(|e| wrong(case, e))?);
        }
    } else {
        let driver = driver::Driver::open()?;
        found = Report::new(family, driver.version.clone());
        for case in &cases {
            found.add(case, &driver.compile(case).map_err(|e| wrong(case, e))?);
        }
    }
    Ok(found)
}
