//! Compiles every pipeline for GPUs that are not here, with RADV's driver and no hardware under it, and holds what comes of
//! it against limits and against what was kept. `scripts/gpu-static` runs it, once for each family of GPUs.

mod assembly;
mod cases;
#[path = "../../../build/compose.rs"]
mod compose;
mod driver;
mod report;
mod spirv;

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
    let (folder, keep) = match &arguments[..] {
        [folder] => (folder, false),
        [folder, flag] if flag == "--keep" => (folder, true),
        _ => {
            return Err(
                "usage: static FOLDER [--keep], with RADV_FORCE_FAMILY and VK_DRIVER_FILES set".into()
            );
        }
    };
    let shaders = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shaders");
    let driver = driver::Driver::open()?;
    let mut found = report::Report::new(&driver);
    for case in cases::all(&shaders)? {
        let module = spirv::compile(&case)?;
        let compiled = driver.compile(&module).map_err(|e| format!("{}: {e}", case.name))?;
        found.add(&case, &compiled);
    }
    print!("{}", found.table());
    let path = Path::new(folder).join(format!("{}.json", found.family.to_lowercase()));
    if keep {
        found.write(&path)?;
        println!("kept in {}", path.display());
    }
    let complaints = found.complaints(&report::Report::read(&path)?);
    complaints.iter().for_each(|complaint| println!("{}: {complaint}", found.family));
    Ok(complaints.is_empty())
}
