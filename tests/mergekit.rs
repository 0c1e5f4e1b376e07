//! mergekit 0.1.5 merges tiny Llama, BERT and T5 families as esmerge does, by recipes of the kinds that people publish
//! (`tests/mergekit/recipes`): every shared deterministic method within 1e-5 of it at float32, and one rounding at bfloat16; methods
//! that draw, to the same L1 norm; and transformers loads every output (`tests/mergekit/compare.py`).
//!
//! Needs a Python with mergekit 0.1.5, transformers and peft, `python3` or the one that `ESMERGE_PYTHON` names; without it the test is
//! ignored by name.

use libtest_mimic::{Arguments, Trial};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let python = std::env::var("ESMERGE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import mergekit, transformers, peft"]).output();
    let present = found.is_ok_and(|output| output.status.success());
    if !present {
        println!("ignored: {python} has no mergekit, transformers or peft");
    }
    let trial = Trial::test("mergekit_merges_every_recipe_to_the_same_model", move || {
        let folder = tempfile::tempdir()?;
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/mergekit/compare.py");
        let run = Command::new(&python)
            .arg(script)
            .arg(env!("CARGO_BIN_EXE_esmerge"))
            .arg(folder.path())
            .output()?;
        let said = String::from_utf8_lossy(&run.stdout).into_owned();
        match run.status.success() {
            true => Ok(()),
            false => Err(format!("{said}\n{}", String::from_utf8_lossy(&run.stderr)).into()),
        }
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial.with_ignored_flag(!present)]).exit_code()
}
