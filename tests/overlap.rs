//! Merges read ahead, write behind and keep deltas in memory: how much of that is done changes nothing in what comes out.

#[path = "common/synthetic.rs"]
mod synthetic;

use serde_json::Value;
use std::fs;
use std::process::Output;
use synthetic::{Family, RECIPE};

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Recipes of all methods, and whether they leave deltas between their halves.
fn recipes() -> [(String, bool); 4] {
    let method = |name: &str| RECIPE.replace("merge_method: esm", &format!("merge_method: {name}"));
    let uncalibrated = |recipe: String| {
        recipe.lines().filter(|line| !line.contains("calibration:")).map(|line| format!("{line}\n")).collect()
    };
    let linear = method("linear").replace("parameters:\n  alpha: 0.5\n", "");
    [
        (RECIPE.to_owned(), true),
        (method("esm++"), true),
        (uncalibrated(method("tsv_m")), true),
        (uncalibrated(linear), false),
    ]
}

/// Everything that a run wrote, but for what names the run.
fn written(family: &Family, out: &str) -> Vec<(String, Vec<u8>)> {
    let named = ["esmerge-report.json", "adapter_config.json", "README.md"];
    let files =
        family.files().into_iter().filter(|path| path.starts_with(family.path(out)) && path.is_file());
    let mut files: Vec<_> = files
        .filter(|path| !named.iter().any(|name| path.ends_with(name)))
        .map(|path| {
            (path.strip_prefix(family.path(out)).unwrap().display().to_string(), fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    assert!(files.iter().any(|(name, _)| name == "model.safetensors"));
    files
}

#[test]
fn every_method_reads_all_that_it_reads_ahead_and_writes_the_same_whatever_the_budget() {
    for (recipe, has_deltas) in recipes() {
        let family = Family::new();
        family.write("recipe.yaml", &recipe);
        let planned =
            json(&family.esmerge(&["merge", "recipe.yaml", "--dry-run", "--json", "--max-memory", "1GB"]));
        let all = planned["bytes_of_deltas"].as_u64().unwrap();
        assert_eq!((all > 0, planned["room_for_deltas"].as_u64()), (has_deltas, Some(625_000_000)));
        let merge = |out: &str, budget: &str| {
            let flags =
                ["merge", "recipe.yaml", out, "--device", "cpu", "-q", "--json", "--max-memory", budget];
            let report = json(&family.esmerge(&flags));
            let bytes = |key: &str| report["stages"][format!("bytes_{key}")].as_u64().unwrap();
            let read = (bytes("read_ahead"), bytes("read_at_once"));
            (read, (bytes("of_deltas_in_memory"), bytes("of_deltas_on_disk")), written(&family, out))
        };
        let (read, deltas, files) = merge("all", "1GB");
        assert!(read.0 > 0 && read.1 == 0, "{recipe}: {read:?}");
        assert_eq!(deltas, (all, 0), "{recipe}");
        let (at_once, on_disk, same) = merge("nothing", "0");
        assert!(at_once.0 == 0 && at_once.1 >= read.0, "{recipe}: {at_once:?} of {read:?}"); // deltas are read back, too
        assert!(on_disk == (0, all) && same == files, "{recipe}");
        if has_deltas {
            let (_, some, same) = merge("some", &all.to_string());
            assert!(
                some.0 > 0 && some.0 <= all * 5 / 8 && some.0 + some.1 == all,
                "{recipe}: {some:?} of {all}"
            );
            assert!(same == files, "{recipe}");
        }
    }
}

#[test]
fn kept_deltas_are_the_same_whatever_the_budget_and_make_the_same_models() {
    let family = Family::new();
    let run = |budget: &str| {
        let (out, deltas, other) =
            (format!("out{budget}"), format!("d{budget}.safetensors"), format!("other{budget}"));
        let flags = ["--device", "cpu", "-q", "--max-memory", budget];
        let merge = ["merge", "recipe.yaml", &out, "--keep-delta", &deltas];
        let rescale = ["rescale", &deltas, "--base", "base", "--alpha", "0.7", &other];
        for arguments in [&merge[..], &rescale] {
            let output = family.esmerge(&[arguments, &flags].concat());
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let read = |path: &str| fs::read(family.path(path)).unwrap();
        (written(&family, &out), read(&deltas), written(&family, &other))
    };
    let all = run("1GB");
    assert!(run("0") == all && run("5000") == all);
}

/// What is left of a run that may not write files of more than so many blocks of 512 bytes.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_is_told_as_it_is_and_nothing_is_left() {
    let family = Family::new();
    let before = family.files();
    // deltas come first where they go through a file, as they do into the journal
    let cases = [
        (&["--max-memory", "1GB"][..], "out.esmerge/1-of-1.values"),
        (&["--max-memory", "0"], "out.esmerge/1-of-1.values"),
        (&["--max-memory", "0", "--no-journal"], ".out.partial-esmerge/scratch.values"),
        (&["--max-memory", "1GB", "--no-journal"], "out/model.safetensors"),
    ];
    for (flags, file) in cases {
        let output = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_esmerge")])
            .args(["merge", "recipe.yaml", "out", "--device", "cpu", "-q"])
            .args(flags)
            .current_dir(family.folder.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("cannot write {file}: File too large")), "{stderr}");
        assert_eq!(family.files(), before);
    }
}
