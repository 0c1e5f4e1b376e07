//! `esmerge bench`: what it refuses, the file it writes, and the exit code of a comparison. No time is judged.

#[path = "common/claims.rs"]
mod claims;
#[path = "common/devices.rs"]
mod devices;

use claims::Stated;
use devices::{Device, for_each_device};
use esmerge::bench::{Kernel, Report};
use libtest_mimic::{Failed, Trial};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

type Done = Result<(), Failed>;

fn main() {
    let mut trials = vec![
        trial("wrong_arguments_are_refused_with_a_word_on_what_is_right", wrong_arguments),
        trial("a_file_that_is_not_of_this_program_is_refused_before_anything_is_measured", foreign_files),
        trial("the_file_holds_what_was_measured_and_reads_back_as_it_was_written", the_file),
        trial("a_comparison_fails_only_where_something_became_slower", comparisons),
        trial("times_of_another_device_are_refused", other_devices),
        trial("help_names_every_kernel_and_the_exit_codes", help),
    ];
    for device in for_each_device() {
        let name = format!("{device}/every_kernel_is_measured");
        let absent = !device.present();
        trials.push(Trial::test(name, move || every_kernel(&device)).with_ignored_flag(absent));
    }
    claims::run(trials, Stated { cpu: 1, adapter: 1, besides: 6 });
}

fn trial(name: &str, run: fn() -> Done) -> Trial {
    Trial::test(name, run)
}

fn bench_on(device: &str, arguments: &[&str]) -> Result<Output, Failed> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esmerge"));
    command.args(["bench", "--device", device, "--seconds", "0.001"]).args(arguments);
    Ok(command.env_remove("ESMERGE_DEVICE").output()?)
}

fn bench(arguments: &[&str]) -> Result<Output, Failed> {
    bench_on("cpu", arguments)
}

fn exits(output: &Output, code: i32, word: &str) -> Done {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let right = output.status.code() == Some(code) && stderr.contains(word) && !stderr.contains("panicked");
    if right { Ok(()) } else { Err(format!("{}, without `{word}`: {stderr}", output.status).into()) }
}

fn path(file: &Path) -> &str {
    file.to_str().unwrap_or_default()
}

/// What every device measures: a size of every kind.
const SIZES: &str = "12x20x24,16x16,3:5x64,8x24";

fn every_kernel(device: &Device) -> Done {
    let selector = match device {
        Device::Gpu(name, _) => format!("gpu:{name}"),
        other => other.to_string(),
    };
    let folder = TempDir::new()?;
    let file = folder.path().join("all.json");
    exits(&bench_on(&selector, &["--shape", SIZES, "--json", path(&file)])?, 0, "")?;
    let report = Report::read(&file)?;
    for (name, _) in Kernel::all() {
        let found = report.results.iter().filter(|result| result.kernel == name);
        if found.clone().count() == 0 {
            return Err(format!("{name} was not measured").into());
        }
        if let Some(wrong) = found.clone().find(|r| !(r.seconds.min > 0.0 && r.seconds.max.is_finite())) {
            return Err(format!("{name} {}: {:?}", wrong.size, wrong.seconds).into());
        }
    }
    Ok(())
}

fn wrong_arguments() -> Done {
    for (arguments, word) in [
        (&["--kernel", "gem"][..], "did you mean 'gemm'?"),
        (&["--kernel", "cholesky"], "did you mean 'inverse_cholesky'?"),
        (&["--shape", "12"], "MxNxK"),
        (&["--shape", "0x4"], "0x4"),
        (&["--shape", "1048576:1048576x1048576"], "GiB"),
        (&["--dtype", "float8"], "bfloat16"),
        (&["--seconds", "0"], "above 0"),
        (&["--seconds", "nan"], "a number is expected"),
        (&["--tolerance", "5"], "--compare"),
        (&["--kernel", "syrk", "--shape", "4x4x4"], "NxK"),
        (&["--kernel", "gemm,syrk", "--shape", "4x4x4"], "NxK"),
        (&["--kernel", "symmetric_eigen", "--shape", "5000x5000"], "4096 at most"),
        (&["--kernel", "attention", "--shape", "2:5x60"], "heads of 64"),
        (&["--kernel", "gemm", "--dtype", "float16"], "float32"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esmerge"));
        command.args(["bench", "--device", "cpu"]).args(arguments).env_remove("ESMERGE_DEVICE");
        exits(&command.output()?, 2, word)?;
    }
    exits(&bench_on("gpu:no such adapter", &[])?, 1, "no such adapter")?;
    exits(&bench_on("tpu", &[])?, 2, "use auto, cpu, gpu")
}

fn foreign_files() -> Done {
    let folder = TempDir::new()?;
    let file = folder.path().join("old.json");
    exits(&bench(&["--compare", path(&file)])?, 1, "cannot read")?;
    for text in ["", "{}", "[1, 2]"] {
        std::fs::write(&file, text)?;
        exits(&bench(&["--compare", path(&file)])?, 1, "not a file of esmerge bench --json")?;
    }
    Ok(())
}

const SMALL: [&str; 4] = ["--kernel", "gemm,syrk,pack", "--shape", "24x20x12,24x20"];

/// A small run, written to a file.
fn measured(folder: &TempDir) -> Result<(PathBuf, Report), Failed> {
    let file = folder.path().join("now.json");
    exits(&bench(&[&SMALL[..], &["--json", path(&file)]].concat())?, 0, "")?;
    let report = Report::read(&file)?;
    Ok((file, report))
}

fn the_file() -> Done {
    let (file, report) = measured(&TempDir::new()?)?;
    let cases: Vec<_> = report.results.iter().map(|r| (&*r.kernel, &*r.size, &*r.dtype)).collect();
    let expected = [
        ("gemm", "24x20x12", "float32"),
        ("syrk", "24x20", "float32"),
        ("pack", "24x20", "float16"),
        ("pack", "24x20", "bfloat16"),
    ];
    assert_eq!(cases, expected);
    assert!(report.device.contains("CPU") && report.peak.gflops > 0.0 && report.peak.gbytes > 0.0);
    for result in &report.results {
        let seconds = result.seconds;
        assert!(0.0 < seconds.min && seconds.min <= seconds.median && seconds.median <= seconds.max);
        assert!(seconds.samples >= 3 && seconds.repetitions >= 1 && result.bytes > 0.0);
    }
    assert_eq!(report.results[0].flops, 2.0 * 24.0 * 20.0 * 12.0);
    let again = TempDir::new()?;
    let file = again.path().join(file.file_name().unwrap_or_default());
    report.write(&file)?;
    assert_eq!(Report::read(&file)?, report);
    Ok(())
}

/// The report with all its times multiplied.
fn write_scaled(report: &Report, factor: f64, file: &Path) -> Done {
    let mut report = report.clone();
    for result in &mut report.results {
        let seconds = &mut result.seconds;
        (seconds.min, seconds.median, seconds.max) =
            (factor * seconds.min, factor * seconds.median, factor * seconds.max);
    }
    Ok(report.write(file)?)
}

fn comparisons() -> Done {
    let folder = TempDir::new()?;
    let (file, report) = measured(&folder)?;
    let small = [&SMALL[..], &["--compare", path(&file)]].concat();
    // Far enough apart that no noise of a machine matters.
    write_scaled(&report, 1e6, &file)?;
    exits(&bench(&small)?, 0, "")?;
    write_scaled(&report, 1e-6, &file)?;
    exits(&bench(&small)?, 1, "slower by more than 10%: gemm 24x20x12 float32")?;
    exits(&bench(&[&small[..], &["--tolerance", "1e12"]].concat())?, 0, "")
}

fn other_devices() -> Done {
    let folder = TempDir::new()?;
    let (file, mut report) = measured(&folder)?;
    report.device = "another".into();
    report.write(&file)?;
    exits(&bench(&[&SMALL[..], &["--compare", path(&file)]].concat())?, 1, "another")
}

fn help() -> Done {
    let output = Command::new(env!("CARGO_BIN_EXE_esmerge")).args(["bench", "--help"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    for word in Kernel::all().map(|(name, _)| name).chain(["MxNxK", "BATCH:", "--compare", "Exit code"]) {
        assert!(text.contains(word), "`{word}` is not in the help");
    }
    Ok(())
}
