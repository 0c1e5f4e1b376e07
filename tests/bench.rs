//! `esmerge bench`: what it refuses, the file it writes, and the exit code of a comparison. No time is judged.

use esmerge::bench::Report;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esmerge"));
    command.args(["bench", "--device", "cpu", "--seconds", "0.001"]).args(arguments);
    command.env_remove("ESMERGE_DEVICE").output().unwrap()
}

#[track_caller]
fn refuses(arguments: &[&str], code: i32, word: &str) {
    let Output { status, stderr, .. } = bench(arguments);
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// A small run, written to a file.
fn measured(folder: &TempDir, name: &str) -> (PathBuf, Report) {
    let file = folder.path().join(name);
    let small = ["--kernel", "gemm,syrk,pack", "--shape", "24x20x12,24x20", "--json", file.to_str().unwrap()];
    let Output { status, stderr, .. } = bench(&small);
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    let report = Report::read(&file).unwrap();
    (file, report)
}

/// The report with all its times multiplied.
fn write_scaled(report: &Report, factor: f64, file: &Path) {
    let mut report = report.clone();
    for result in &mut report.results {
        let seconds = &mut result.seconds;
        (seconds.min, seconds.median, seconds.max) =
            (factor * seconds.min, factor * seconds.median, factor * seconds.max);
    }
    report.write(file).unwrap();
}

#[test]
fn wrong_arguments_are_refused_with_a_word_on_what_is_right() {
    refuses(&["--kernel", "gem"], 2, "inverse_cholesky");
    refuses(&["--shape", "12"], 2, "MxNxK");
    refuses(&["--shape", "0x4"], 2, "0x4");
    refuses(&["--dtype", "float8"], 2, "bfloat16");
    refuses(&["--seconds", "0"], 2, "above 0");
    refuses(&["--tolerance", "5"], 2, "--compare");
    refuses(&["--kernel", "syrk", "--shape", "4x4x4"], 2, "NxK");
    refuses(&["--kernel", "gemm", "--dtype", "float16"], 2, "float32");
    refuses(&["--device", "gpu:no such adapter"], 2, "cannot be used multiple times");
}

#[test]
fn a_file_that_is_not_of_this_program_is_refused_before_anything_is_measured() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("old.json");
    refuses(&["--compare", file.to_str().unwrap()], 1, "cannot read");
    for text in ["", "{}", "[1, 2]"] {
        std::fs::write(&file, text).unwrap();
        refuses(&["--compare", file.to_str().unwrap()], 1, "not a file of esmerge bench --json");
    }
}

#[test]
fn the_file_holds_what_was_measured_and_reads_back_as_it_was_written() {
    let folder = TempDir::new().unwrap();
    let (file, report) = measured(&folder, "now.json");
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
    report.write(&file).unwrap();
    assert_eq!(Report::read(&file).unwrap(), report);
}

#[test]
fn a_comparison_fails_only_where_something_became_slower() {
    let folder = TempDir::new().unwrap();
    let (file, report) = measured(&folder, "now.json");
    let small =
        ["--kernel", "gemm,syrk,pack", "--shape", "24x20x12,24x20", "--compare", file.to_str().unwrap()];
    // Far enough apart that no noise of a machine matters.
    write_scaled(&report, 1e6, &file);
    let faster = bench(&small);
    assert!(faster.status.success(), "{}", String::from_utf8_lossy(&faster.stderr));
    write_scaled(&report, 1e-6, &file);
    refuses(&small, 1, "slower by more than 10%: gemm 24x20x12 float32");
    refuses(&[&small[..], &["--tolerance", "1e12"]].concat(), 0, "");
}

#[test]
fn times_of_another_device_are_refused() {
    let folder = TempDir::new().unwrap();
    let (file, mut report) = measured(&folder, "now.json");
    report.device = "another".into();
    report.write(&file).unwrap();
    let arguments = ["--kernel", "gemm", "--shape", "24x20x12", "--compare", file.to_str().unwrap()];
    refuses(&arguments, 1, "another");
}
