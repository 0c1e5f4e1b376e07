//! Outputs: what a stopped or killed run leaves, who may write where, and what an earlier output becomes.

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use std::fs;
use synthetic::{Family, Numbers, RECIPE, Tensor, Tensors};

/// A family whose merge takes a while.
fn slow() -> Family {
    let family = Family::new();
    let model = |seed| {
        let mut numbers = Numbers::new(seed);
        let tensor = |i: usize| {
            let values = numbers.take(320 * 320, 1.0);
            (format!("layers.{i}.dense.weight"), Tensor::float(Dtype::F32, &[320, 320], &values))
        };
        (0..24).map(tensor).collect::<Tensors>()
    };
    for (seed, name) in ["base", "experts/cars", "experts/birds"].into_iter().enumerate() {
        family.write_model(name, &model(seed as u64 + 1));
    }
    family.write(
        "recipe.yaml",
        "merge_method: tsv_m\nbase_model: base\nmodels: [{model: experts/cars}, {model: experts/birds}]\n\
         accuracy: exact\n",
    );
    family
}

#[cfg(unix)]
mod stopped {
    use super::*;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    /// Starts a run and gives it when its temporary folder is there.
    fn start(family: &Family, arguments: &[&str], temporary: &str) -> Child {
        let mut run = Command::new(env!("CARGO_BIN_EXE_esmerge"))
            .args(arguments)
            .args(["-q", "--device", "cpu"])
            .current_dir(family.folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while !family.path(temporary).exists() {
            assert!(run.try_wait().unwrap().is_none(), "it ended before it could be stopped");
            std::thread::sleep(Duration::from_micros(200));
        }
        run
    }

    fn send(run: &Child, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &run.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn hidden(family: &Family) -> Vec<PathBuf> {
        let hidden = |path: &PathBuf| {
            path.components().any(|c| {
                let name = c.as_os_str().to_string_lossy();
                name.starts_with(".") && name.contains("esmerge") || name.ends_with(".esmerge")
            })
        };
        family.files().into_iter().filter(hidden).collect()
    }

    #[test]
    fn a_signal_removes_everything_and_tells_itself_by_the_exit_code() {
        let family = slow();
        let before = family.files();
        let merge = ["merge", "recipe.yaml", "new/out", "--keep-delta", "deltas.safetensors"];
        for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
            let mut run = start(&family, &merge, ".deltas.safetensors.partial-esmerge/deltas");
            send(&run, signal);
            assert_eq!(run.wait().unwrap().code(), Some(code), "{signal}");
            assert_eq!(family.files(), before, "{signal}");
        }
    }

    #[test]
    fn a_signal_that_is_to_be_ignored_is_ignored() {
        let family = slow();
        let script = format!(
            "trap '' HUP; exec '{}' merge recipe.yaml out -q --device cpu",
            env!("CARGO_BIN_EXE_esmerge")
        );
        let mut run =
            Command::new("sh").args(["-c", &script]).current_dir(family.folder.path()).spawn().unwrap();
        while !family.path("out.esmerge").exists() {
            std::thread::sleep(Duration::from_micros(200));
        }
        send(&run, "HUP");
        assert_eq!(run.wait().unwrap().code(), Some(0), "as under nohup");
        assert!(family.path("out/model.safetensors").exists());
    }

    #[test]
    fn what_a_killed_run_left_is_named_and_removed_by_the_next() {
        let family = slow();
        let merge = ["merge", "recipe.yaml", "out", "--keep-delta", "d.safetensors"];
        let mut run = start(&family, &merge, ".d.safetensors.partial-esmerge/deltas");
        send(&run, "KILL");
        run.wait().unwrap();
        let left = hidden(&family);
        assert!(left.len() >= 3, "{left:?}");

        let output = family.esmerge(&[&merge[..], &["--device", "cpu"]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.contains(".d.safetensors.partial-esmerge"), "{stderr}");
        assert!(stderr.contains("MB") && stderr.contains("killed"), "{stderr}");
        assert_eq!(hidden(&family), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_second_run_into_the_same_folder_is_refused_before_its_work_and_harms_nothing() {
        let family = slow();
        for existing in [false, true] {
            if existing {
                fs::create_dir(family.path("again")).unwrap();
            }
            let (out, temporary) = match existing {
                false => ("out", "out.esmerge"),
                true => ("again", "again/.partial-esmerge"),
            };
            let mut first = start(&family, &["merge", "recipe.yaml", out], temporary);
            let second = family.esmerge(&["merge", "recipe.yaml", out, "-q", "--device", "cpu"]);
            let stderr = String::from_utf8(second.stderr).unwrap();
            assert_eq!(second.status.code(), Some(1), "{stderr}");
            assert!(stderr.contains("is at work on") && stderr.contains(out), "{stderr}");
            assert!(first.try_wait().unwrap().is_none(), "the first run had not ended");
            assert!(first.wait().unwrap().success());
            assert!(family.path(&format!("{out}/model.safetensors")).exists());
        }
        assert_eq!(hidden(&family), Vec::<PathBuf>::new());
    }
}

#[test]
fn an_earlier_output_and_its_deltas_are_replaced_only_if_asked() {
    let family = Family::new();
    let keep = ["--keep-delta", "d.safetensors"];
    family.merged(&keep);
    let old = fs::read(family.path("out/model.safetensors")).unwrap();
    let merge = |arguments: &[&str]| {
        let output = family.merge(&[&keep[..], arguments].concat());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, stderr) = merge(&["--alpha", "1"]);
    assert!(code == Some(1) && stderr.contains("--force"), "{stderr}");
    assert_eq!(fs::read(family.path("out/model.safetensors")).unwrap(), old);
    let (code, stderr) = merge(&["--alpha", "1", "--force"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_ne!(fs::read(family.path("out/model.safetensors")).unwrap(), old);

    let rescale =
        ["rescale", "d.safetensors", "--base", "base", "--alpha", "0.5", "out", "-q", "--device", "cpu"];
    assert_eq!(family.esmerge(&rescale).status.code(), Some(1));
    assert_eq!(family.esmerge(&[&rescale[..], &["--force"]].concat()).status.code(), Some(0));
    assert_eq!(fs::read(family.path("out/model.safetensors")).unwrap(), old, "alpha 0.5 again");

    fs::write(family.path("d.safetensors"), "mine").unwrap();
    let (code, stderr) = merge(&["--force"]);
    assert!(
        code == Some(1) && stderr.contains("d.safetensors") && stderr.contains("delta files only"),
        "{stderr}"
    );
}

#[test]
fn deltas_are_not_kept_in_the_output_however_it_is_spelled() {
    let family = Family::new();
    let whole = family.path("out/d.safetensors").display().to_string();
    for file in [whole.as_str(), "./out/d.safetensors", "base/../out/d.safetensors"] {
        fs::create_dir_all(family.path("out")).unwrap();
        let output = family.merge(&["--keep-delta", file]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains("output folder"), "{file}: {stderr}");
        fs::remove_dir(family.path("out")).unwrap();
    }
}

#[test]
fn a_name_of_the_greatest_length_can_be_written() {
    let family = Family::new();
    let name = "x".repeat(255);
    let output = family.esmerge(&["merge", "recipe.yaml", &name, "-q", "--device", "cpu"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(family.path(&name).join("model.safetensors").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn results_that_do_not_reach_standard_output_are_an_error() {
    let family = Family::new();
    let run = |arguments: &[&str], to: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_esmerge"))
            .args(arguments)
            .current_dir(family.folder.path())
            .stdout(fs::File::options().write(true).open(to).unwrap())
            .output()
            .unwrap()
    };
    let merge = ["merge", "recipe.yaml", "out", "-q", "--device", "cpu", "--json"];
    for arguments in [&merge[..], &["--help"], &["merge", "recipe.yaml", "--dry-run"]] {
        let output = run(arguments, "/dev/full");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("standard output: No space left on device"), "{stderr}");
    }
    assert_eq!(run(&["--version"], "/dev/null").status.code(), Some(0));
}

#[test]
fn the_variable_for_the_device_is_named_when_it_is_wrong_and_may_be_empty() {
    let family = Family::new();
    let run = |value: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_esmerge"))
            .args(["merge", "recipe.yaml", "--dry-run", "-q"])
            .env("ESMERGE_DEVICE", value)
            .current_dir(family.folder.path())
            .output()
            .unwrap()
    };
    let wrong = run("nonsense");
    let stderr = String::from_utf8(wrong.stderr).unwrap();
    assert!(wrong.status.code() == Some(2) && stderr.contains("ESMERGE_DEVICE"), "{stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    assert!(run("").status.success());
}

#[test]
fn without_a_command_there_is_help_and_no_error() {
    let output = Family::new().esmerge(&[]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(2) && stderr.contains("Usage:") && !stderr.contains("error: "),
        "{stderr}"
    );
}

#[test]
fn text_from_files_cannot_steer_the_terminal_nor_fill_it() {
    let family = Family::new();
    let mut tensors = synthetic::base(Dtype::F32);
    tensors.insert("odd\u{1b}[31m\u{7}\u{202e}name".to_owned(), Tensor::float(Dtype::F32, &[1], &[0.0]));
    family.write_model("base", &tensors);
    let output = family.merge(&[]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains(r"odd\u001b[31m\u0007\u202ename"), "{stderr}");
    family.write("recipe.yaml", RECIPE.replace("0.5", &"x".repeat(10_000_000)));
    let output = family.merge(&[]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && stderr.len() < 1000, "{} bytes", stderr.len());
}

#[test]
fn rescale_refuses_a_base_whose_configuration_is_not_json() {
    let family = Family::new();
    family.merged(&["--keep-delta", "d.safetensors"]);
    family.write("base/config.json", "{");
    let before = family.files();
    let rescale =
        ["rescale", "d.safetensors", "--base", "base", "--alpha", "1", "other", "-q", "--device", "cpu"];
    let output = family.esmerge(&rescale);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("base/config.json"), "{stderr}");
    assert_eq!(family.files(), before);
}
