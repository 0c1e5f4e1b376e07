//! What the program says fits a terminal of 80 columns, and is explained.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn esmerge(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_esmerge"))
        .current_dir(folder)
        .env("ESMERGE_DEVICE", "cpu")
        .env("COLUMNS", "80")
        .args(arguments)
        .output()
        .unwrap()
}

/// What a command prints; fails if it does, or if a line is wider than 80 columns.
fn says(folder: &Path, arguments: &[&str]) -> String {
    let output = esmerge(folder, arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{arguments:?}: {} columns: {line}", line.chars().count());
    }
    text
}

fn has_all(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in:\n{text}");
    }
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/vision")
}

#[test]
fn tables_fit_eighty_columns_and_their_words_are_explained() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let path = |rest: &str| example().join(rest).display().to_string();
    let recipe = path("experts.yaml");
    let planned = says(folder, &["merge", &recipe, "--dry-run"]);
    has_all(&planned, &["treatment", "GFLOP: ", "memory: ", "every expert: ", "layers.*.mlp.fc1"]);
    let merged = says(folder, &["merge", &recipe, "out"]);
    has_all(&merged, &["energy kept: ", "task scale: ", "beta: ", "alpha: ", "experts of rank"]);

    let (task, other) = (path("tasks/digits8.safetensors"), path("tasks/fashion.safetensors"));
    let experts = path("recipe.yaml");
    let split = ["--split", "test[:30]", "-q"];
    let evaluated = [&["eval", "out", "--task", &task, &other, "--experts", &experts][..], &split].concat();
    let table = says(folder, &evaluated);
    has_all(&table, &["95% interval", "expert: ", "normalised: ", "CKA: "]);
    let routed = [&["eval", "out", "--task", &task, &other, "--routing", "prototype"][..], &split].concat();
    has_all(&says(folder, &routed), &["prototype routing", "right choices", "vote"]);
    let routes = says(folder, &["route", "out", "--data", &task, "--split", "test[:5]"]);
    has_all(&routes, &["experts: 0 fashion", "votes", "expert in each layer: ", "layers: "]);

    let measured = says(folder, &["bench", "--shape", "16x16x16,16x16,3:5x64", "--seconds", "0.001"]);
    has_all(&measured, &["GFLOP/s", "of peak: ", "symmetric_eigen"]);
    says(folder, &["devices"]);
}

#[test]
fn a_benchmark_says_how_long_it_will_take_before_it_starts() {
    let place = tempfile::tempdir().unwrap();
    let output =
        esmerge(place.path(), &["bench", "--kernel", "axpby", "--shape", "8x8", "--seconds", "0.001"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("1 case at most, about "), "{text}");
}

#[test]
fn every_shell_has_completions_and_the_manual_page_every_command() {
    let place = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = esmerge(place.path(), arguments);
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let commands = ["merge", "rescale", "capture", "eval", "route", "init", "methods", "devices", "bench"];
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        has_all(&run(&["completions", shell]), &[&commands[..], &["keep-delta"]].concat());
    }
    let page = run(&["man"]);
    has_all(&page, &[".TH esmerge 1", "keep\\-delta"]);
    commands.iter().for_each(|name| assert!(page.contains(&format!("esmerge\\-{name}")), "{name}"));
    let unknown = esmerge(place.path(), &["completions", "cmd"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("bash"));
}

#[test]
fn the_version_names_the_package_and_where_it_is_known_the_commit() {
    let place = tempfile::tempdir().unwrap();
    let version = says(place.path(), &["--version"]);
    let rest = version.trim().strip_prefix(concat!("esmerge ", env!("CARGO_PKG_VERSION"))).unwrap();
    let commit = rest.strip_prefix(" (").and_then(|rest| rest.strip_suffix(')'));
    let is_commit = |text: &str| text.len() >= 7 && text.chars().all(|c| c.is_ascii_hexdigit());
    assert!(rest.is_empty() || commit.is_some_and(is_commit), "{version}");
}
