//! PEFT loads the adapters of ESM++ onto the merged model, and gives the features that oracle routing gives here; what it makes of
//! other adapters, and of those that are written here, is what is made of them here.
//!
//! Needs a Python with torch, transformers, peft and safetensors, `python3` or the one that `ESMERGE_PYTHON` names; without it
//! the tests are ignored by name, and a line says why.

#[path = "common/adapter.rs"]
mod adapter;
#[path = "common/claims.rs"]
mod claims;
#[path = "common/devices.rs"]
mod devices;
#[path = "common/place.rs"]
mod place;
#[path = "common/synthetic.rs"]
mod synthetic;

use adapter::relative;
use claims::Stated;
use esmerge::backend::Dtype;
use esmerge::backend::cpu::Cpu;
use esmerge::checkpoint::{Stored, TensorSpec, TensorWriter};
use esmerge::data::{ModelSource, Split, Task};
use esmerge::eval::Evaluator;
use esmerge::model::Samples;
use esmerge::routing::{Choice, Experts, Router};
use libtest_mimic::Trial;
use pollster::block_on;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use synthetic::{Numbers, Tensor, Tensors, read_tensors, write_tensors};

fn main() {
    let python = python();
    let family = repository("../shared/family/minilm");
    if !family.is_dir() {
        assert!(std::env::var_os("CI").is_none(), "in CI the family must be at {}", family.display());
        println!("ignored: {} is not here", family.display());
    }
    type Claim = fn(&str);
    let claims: [(&str, bool, Claim); 9] = [
        ("base_and_adapter_are_what_peft_merges", true, base_and_adapter_are_what_peft_merges),
        ("peft_loads_what_extract_and_out_lora_write", true, peft_loads_what_extract_and_out_lora_write),
        (
            "peft_loads_embeddings_and_conv1d_of_one_adapter",
            true,
            peft_loads_embeddings_and_conv1d_of_one_adapter,
        ),
        ("peft_loads_the_adapters_of_a_bare_vit", true, |python| VIT.adapters_apply(python)),
        ("peft_loads_the_adapters_of_an_image_classifier", true, |python| {
            CLASSIFIER_OF_IMAGES.adapters_apply(python)
        }),
        ("peft_loads_the_adapters_of_a_text_classifier", true, |python| {
            CLASSIFIER_OF_TEXTS.adapters_apply(python)
        }),
        ("peft_loads_the_adapters_of_a_causal_lm", true, |python| CAUSAL_LM.adapters_apply(python)),
        (
            "peft_loads_the_adapters_of_a_clip_tower_with_projection",
            true,
            peft_loads_the_adapters_of_a_clip_tower_with_projection,
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
    claims::run(trials.into(), Stated { cpu: 0, adapter: 0, besides: 9 });
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
        let count = task.len("test").unwrap().min(16);
        let expert = experts.tasks().iter().position(|name| *name == task.name).unwrap();
        let mut router = Router::new(&Cpu, &experts, Choice::Oracle(expert));
        let features =
            block_on(evaluator.features_through(&task, &split, task.pooling().unwrap(), &mut router))
                .unwrap();
        router.finish().unwrap();
        let mut add = |name: &str, dtype: Stored, shape: Vec<usize>, bytes: Vec<u8>| {
            tensors.push((TensorSpec { name: format!("{}.{name}", task.name), dtype, shape }, bytes));
        };
        let bytes = |values: &[f32]| bytemuck::cast_slice(values).to_vec();
        let width = features.values.len() / count;
        add("features", Stored::F32, vec![count, width], bytes(&features.values));
        match evaluator.samples(&task, &split, 0..count).unwrap() {
            Samples::Images(images) => {
                let shape = vec![count, images.channels, images.height, images.width];
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
                add("input_ids", Stored::I32, vec![count, longest], ids);
                add("attention_mask", Stored::I32, vec![count, longest], mask);
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

/// Adapters of every layout that PEFT knows here.
fn base_and_adapter_are_what_peft_merges(python: &str) {
    let folder = tempfile::tempdir().unwrap();
    let script = repository("tests/python/peft_inputs.py");
    let output = Command::new(python).arg(script).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cases: Vec<PathBuf> = fs::read_dir(folder.path()).unwrap().map(|case| case.unwrap().path()).collect();
    assert_eq!(cases.len(), 16);
    for case in cases {
        let recipe = "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: adapter}]\n";
        fs::write(case.join("recipe.yaml"), recipe).unwrap();
        let ours = case.join("ours");
        esmerge(&["merge", case.join("recipe.yaml").to_str().unwrap(), ours.to_str().unwrap()]);
        let (got, want) = (read_tensors(&ours), read_tensors(&case.join("merged")));
        assert!(got.keys().eq(want.keys()), "{}", case.display());
        for (name, tensor) in &got {
            let want: Vec<f64> = want[name].values().into_iter().map(f64::from).collect();
            let (got, zero) = (tensor.values(), want.iter().all(|v| *v == 0.0));
            let error = relative(&got, &want);
            assert!(
                error <= 1e-6 || zero && got.iter().all(|v| *v == 0.0),
                "{}: {name}: {error:e}",
                case.display()
            );
        }
    }
}

/// Adapters extracted from two fine-tunes, and the two merged into one in every way.
fn peft_loads_what_extract_and_out_lora_write(python: &str) {
    let place = place::Place::new();
    let script = repository("tests/python/peft_outputs.py").display().to_string();
    let is_the_applied = |adapter: &str| {
        let applied = format!("{adapter}-applied");
        place.succeeds(&["apply", "base", adapter, "-o", &applied, "--out-dtype", "float32", "-q"]);
        let paths = ["base", adapter, &applied].map(|name| place.path(name));
        let output = Command::new(python).arg(&script).args(&paths).output().unwrap();
        print!("{adapter}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{adapter}: {}", String::from_utf8_lossy(&output.stderr));
    };
    CAUSAL_LM.write(&place, "base", 0);
    for (name, seed) in [("a", 1), ("b", 2)] {
        CAUSAL_LM.write(&place, name, seed);
        let lora = format!("lora-{name}");
        place.succeeds(&["extract", name, "--base", "base", "--rank", "4", "-o", &lora, "-q"]);
        is_the_applied(&lora);
    }
    let ways = ["linear", "task_arithmetic", "tsv_m"].map(|method| (method, "truncate"));
    for (method, compress) in ways.into_iter().chain([("tsv_m", "ctm")]) {
        place.write(
            "recipe.yaml",
            format!(
                "merge_method: {method}\nbase_model: base\nmodels: [{{model: lora-a}}, {{model: lora-b}}]\nout: lora\nrank: 6\n\
                 compress: {compress}\n"
            ),
        );
        let merged = format!("{method}-{compress}");
        place.succeeds(&["merge", "recipe.yaml", &merged, "-q"]);
        is_the_applied(&merged);
    }
}

/// Two adapters of GPT-2, one with the embedding, merged into one.
fn peft_loads_embeddings_and_conv1d_of_one_adapter(python: &str) {
    let place = place::Place::new();
    let script = |name: &str| repository("tests/python").join(name).display().to_string();
    let inputs = Command::new(python)
        .arg(script("peft_inputs.py"))
        .arg(place.path("cases"))
        .args(["conv1d", "conv1d_embeddings"])
        .output()
        .unwrap();
    assert!(inputs.status.success(), "{}", String::from_utf8_lossy(&inputs.stderr));
    let base = place.path("cases/conv1d_embeddings/base").display().to_string();
    for method in ["task_arithmetic", "tsv_m", "knots_ties"] {
        place.write(
            "recipe.yaml",
            format!(
                "merge_method: {method}\nbase_model: {base}\nmodels:\n  - {{name: a, model: cases/conv1d_embeddings/adapter}}\n  \
                 - {{name: b, model: cases/conv1d/adapter}}\nout: lora\nrank: 8\n"
            ),
        );
        let insist = ["--allow-mismatch", "base_model_name_or_path"];
        place.succeeds(&[&["merge", "recipe.yaml", method, "-q"][..], &insist].concat());
        let applied = format!("{method}-applied");
        place.succeeds(
            &[&["apply", &base, method, "-o", &applied, "--out-dtype", "float32", "-q"][..], &insist]
                .concat(),
        );
        let output = Command::new(python)
            .arg(script("peft_outputs.py"))
            .args([
                &base,
                &place.path(method).display().to_string(),
                &place.path(&applied).display().to_string(),
            ])
            .output()
            .unwrap();
        print!("{method}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn peft_loads_the_adapters_of_a_clip_tower_with_projection(python: &str) {
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

/// What goes into a model, of all that a golden file has.
const INPUTS: [&str; 3] = ["input_ids", "attention_mask", "pixel_values"];

/// A tiny model of `model_goldens` in a class of transformers.
struct Golden {
    model: &'static str,
    class: &'static str,
    /// What the class puts before the names of the bare model.
    prefix: &'static str,
    /// Tensors of the class beside those.
    more: &'static [(&'static str, &'static [usize])],
}

const VIT: Golden = Golden { model: "vit", class: "ViTModel", prefix: "", more: &[] };
const CLASSIFIER_OF_IMAGES: Golden = Golden {
    model: "vit",
    class: "ViTForImageClassification",
    prefix: "vit.",
    more: &[("classifier.weight", &[2, 16]), ("classifier.bias", &[2])],
};
const CLASSIFIER_OF_TEXTS: Golden = Golden {
    model: "bert",
    class: "BertForSequenceClassification",
    prefix: "bert.",
    more: &[
        ("bert.pooler.dense.weight", &[16, 16]),
        ("bert.pooler.dense.bias", &[16]),
        ("classifier.weight", &[2, 16]),
        ("classifier.bias", &[2]),
    ],
};
const CAUSAL_LM: Golden = Golden {
    model: "llama",
    class: "LlamaForCausalLM",
    prefix: "model.",
    more: &[("lm_head.weight", &[40, 16])],
};

impl Golden {
    fn adapters_apply(&self, python: &str) {
        let place = place::Place::new();
        let samples = place::golden(&format!("{}.safetensors", self.model)).display().to_string();
        let mut recipe = "merge_method: esm++\nbase_model: base\nmodels:\n".to_owned();
        self.write(&place, "base", 0);
        for (name, seed) in [("a", 1), ("b", 2)] {
            self.write(&place, name, seed);
            place.succeeds(&["capture", name, "--data", &samples, "-o", &format!("{name}.calib"), "-q"]);
            recipe += &format!("  - {{model: {name}, calibration: {name}.calib}}\n");
        }
        recipe += "parameters: {alpha: 1, rank: 4}\nout_dtype: float32\n";
        place.write("recipe.yaml", recipe);
        let inputs = read_tensors(Path::new(&samples)).into_iter();
        let inputs = inputs.filter(|(key, _)| INPUTS.contains(&key.as_str()));
        let task: Tensors = inputs.map(|(key, tensor)| (format!("test.{key}"), tensor)).collect();
        let tasks = ["a", "b"].map(|name| place.path(&format!("{name}.task")));
        for (path, name) in tasks.iter().zip(["a", "b"]) {
            write_tensors(path, &task, &BTreeMap::from([("task".to_owned(), name.to_owned())]));
        }
        adapters_apply(python, &place.path("recipe.yaml"), &place.path(""), &tasks);
    }

    /// The model in its class, its weights moved by a seed.
    fn write(&self, place: &place::Place, name: &str, seed: u64) {
        place.model(name, self.model, seed);
        let folder = place.path(name);
        let mut tensors: Tensors = read_tensors(&folder)
            .into_iter()
            .map(|(name, tensor)| (format!("{}{name}", self.prefix), tensor))
            .collect();
        for (name, shape) in self.more {
            let values = Numbers::new(9).take(shape.iter().product(), 0.3);
            tensors.insert((*name).to_owned(), Tensor::float(Dtype::F32, shape, &values));
        }
        fs::remove_file(folder.join("model.safetensors")).unwrap();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_tensors(&folder.join("model.safetensors"), &tensors, &metadata);
        let path = folder.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["architectures"] = serde_json::json!([self.class]);
        fs::write(path, config.to_string()).unwrap();
    }
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
