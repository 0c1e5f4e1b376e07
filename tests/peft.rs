//! PEFT loads the adapters of ESM++ onto the merged model, and gives the features that oracle routing gives here.
//!
//! Needs a Python with torch, transformers, peft and safetensors, `python3` or the one that `ESMERGE_PYTHON` names; without it
//! the tests are ignored by name, and a line says why.

use esmerge::backend::cpu::Cpu;
use esmerge::checkpoint::{Stored, TensorSpec, TensorWriter};
use esmerge::data::{ModelSource, Split, Task};
use esmerge::eval::Evaluator;
use esmerge::model::Samples;
use esmerge::routing::{Choice, Experts, Router};
use libtest_mimic::{Arguments, Trial};
use pollster::block_on;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let python = python();
    let family = repository("../shared/family/minilm");
    if !family.is_dir() {
        assert!(std::env::var_os("CI").is_none(), "in CI the family must be at {}", family.display());
        println!("ignored: {} is not here", family.display());
    }
    type Claim = fn(&str);
    let claims: [(&str, bool, Claim); 2] = [
        (
            "peft_loads_the_adapters_of_a_vision_transformer",
            true,
            peft_loads_the_adapters_of_a_vision_transformer,
        ),
        ("peft_loads_the_adapters_of_minilm", family.is_dir(), peft_loads_the_adapters_of_minilm),
    ];
    let trials = claims.map(|(name, present, claim)| {
        let ignored = python.is_none() || !present;
        let python = python.clone().unwrap_or_default();
        let check = move || {
            claim(&python);
            Ok(())
        };
        Trial::test(name, check).with_ignored_flag(ignored)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

/// A Python that can run the script.
fn python() -> Option<String> {
    let python = std::env::var("ESMERGE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let imports = "import torch, transformers, peft, safetensors";
    let found = Command::new(&python).args(["-c", imports]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    println!(
        "ignored: {python} lacks torch, transformers, peft or safetensors (ESMERGE_PYTHON names another)"
    );
    None
}

fn esmerge(arguments: &[&str]) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_esmerge")).args(arguments).args(["-q", "--device", "cpu"]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn repository(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// Samples of each task, and the features that the merged model with the task's expert gives them.
fn write_features(merged: &Path, tasks: &[PathBuf], file: &Path) {
    let source = ModelSource::checkpoint(merged).unwrap();
    let experts = Experts::open(merged).unwrap();
    let evaluator = Evaluator::new(&Cpu, &source).unwrap();
    let mut tensors: Vec<(TensorSpec, Vec<u8>)> = Vec::new();
    for path in tasks {
        let task = Task::open(path).unwrap();
        let split: Split = "test[:16]".parse().unwrap();
        let expert = experts.tasks().iter().position(|name| *name == task.name).unwrap();
        let mut router = Router::new(&Cpu, &experts, Choice::Oracle(expert));
        let features = block_on(evaluator.features_through(&task, &split, &mut router)).unwrap();
        router.finish().unwrap();
        let mut add = |name: &str, dtype: Stored, shape: Vec<usize>, bytes: Vec<u8>| {
            tensors.push((TensorSpec { name: format!("{}.{name}", task.name), dtype, shape }, bytes));
        };
        let bytes = |values: &[f32]| bytemuck::cast_slice(values).to_vec();
        let width = features.values.len() / 16;
        add("features", Stored::F32, vec![16, width], bytes(&features.values));
        match evaluator.samples(&task, &split, 0..16).unwrap() {
            Samples::Images(images) => {
                let shape = vec![16, images.channels, images.height, images.width];
                add("pixel_values", Stored::F32, shape, bytes(&images.values));
            }
            Samples::Text(texts) => {
                let longest = texts.iter().map(|text| text.ids.len()).max().unwrap();
                let padded = |value: &dyn Fn(&[u32], usize) -> u32| -> Vec<u8> {
                    let row = |ids: &[u32]| (0..longest).map(|i| value(ids, i)).collect::<Vec<_>>();
                    texts.iter().flat_map(|t| row(&t.ids)).flat_map(u32::to_le_bytes).collect()
                };
                let ids = padded(&|ids, i| ids.get(i).copied().unwrap_or(0));
                let mask = padded(&|ids, i| u32::from(i < ids.len()));
                add("input_ids", Stored::I32, vec![16, longest], ids);
                add("attention_mask", Stored::I32, vec![16, longest], mask);
            }
        }
    }
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = TensorWriter::create(file, &specs, &BTreeMap::new()).unwrap();
    tensors.iter().for_each(|(_, bytes)| writer.write(bytes).unwrap());
    writer.finish().unwrap();
}

/// Merges as a recipe says and compares.
fn adapters_apply(python: &str, recipe: &Path, folder: &Path, tasks: &[PathBuf]) {
    let merged = folder.join("merged");
    esmerge(&["merge", recipe.to_str().unwrap(), merged.to_str().unwrap()]);
    let features = folder.join("features.safetensors");
    write_features(&merged, tasks, &features);
    let script = repository("tests/python/peft_adapters.py");
    let output = Command::new(python).arg(script).arg(&merged).arg(&features).output().unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn peft_loads_the_adapters_of_a_vision_transformer(python: &str) {
    let folder = tempfile::tempdir().unwrap();
    let example = repository("examples/vision");
    let text = fs::read_to_string(example.join("recipe.yaml")).unwrap();
    let root = format!("{}/", example.display());
    let text = text
        .replace("merge_method: esm", "merge_method: esm++")
        .replace("base_model: ", &format!("base_model: {root}"))
        .replace("model: experts", &format!("model: {root}experts"))
        .replace("calibration: ", &format!("calibration: {root}"));
    // layers smaller than the rank are listed apart
    let text = text.replace(
        "  alpha: 0.5",
        "  alpha: 0.5\n  rank: 48\n  routed_layers: ['*proj.weight', '*.fc1.weight']",
    );
    let text = text.replace("'*proj.weight'", "'*.q_proj.weight', '*.k_proj.weight', '*.v_proj.weight'");
    let recipe = folder.path().join("recipe.yaml");
    fs::write(&recipe, text).unwrap();
    let tasks: Vec<PathBuf> = ["fashion", "letters", "animals", "digits8"]
        .iter()
        .map(|task| example.join(format!("tasks/{task}.safetensors")))
        .collect();
    adapters_apply(python, &recipe, folder.path(), &tasks);
}

fn peft_loads_the_adapters_of_minilm(python: &str) {
    let root = repository("../shared/family/minilm");
    let folder = tempfile::tempdir().unwrap();
    let names = ["sst2", "subj", "trec", "emotion"];
    let mut text = format!("merge_method: esm++\nbase_model: {}\nmodels:\n", root.join("base").display());
    for name in names {
        let delta = root.join(format!("experts/{name}.delta.safetensors"));
        let calibration = folder.path().join(format!("{name}.safetensors"));
        esmerge(&[
            "capture",
            &format!("{}+delta:{}", root.join("base").display(), delta.display()),
            "--data",
            root.join(format!("tasks/{name}.safetensors")).to_str().unwrap(),
            "--samples",
            "8",
            "--out",
            calibration.to_str().unwrap(),
        ]);
        text += &format!(
            "  - {{name: {name}, model: {{delta: {}}}, calibration: {}}}\n",
            delta.display(),
            calibration.display()
        );
    }
    text += "parameters: {alpha: 1, preset: esm-lm, rank: 16}\nout_dtype: float32\n";
    let recipe = folder.path().join("recipe.yaml");
    fs::write(&recipe, text).unwrap();
    let tasks: Vec<PathBuf> =
        names.iter().map(|name| root.join(format!("tasks/{name}.safetensors"))).collect();
    adapters_apply(python, &recipe, folder.path(), &tasks);
}
