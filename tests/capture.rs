//! `capture`, `eval` and calibration inside a merge, through the program, on the tiny models of `model_goldens`.

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::calibration::{Calibration, Statistic};
use esmerge::checkpoint::Stored;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use synthetic::{Numbers, Tensor, Tensors, read_tensors, write_tensors};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model_goldens").join(name)
}

/// A folder with models and samples.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// A copy of a golden model, its weights moved a little.
    fn model(&self, name: &str, architecture: &str, seed: u64) {
        let from = golden(architecture);
        fs::create_dir_all(self.path(name)).unwrap();
        for entry in fs::read_dir(&from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), self.path(name).join(entry.file_name())).unwrap();
        }
        if seed > 0 {
            let mut numbers = Numbers::new(seed);
            let moved: Tensors = read_tensors(&from)
                .into_iter()
                .map(|(name, tensor)| {
                    let values = tensor.values();
                    let steps = numbers.take(values.len(), 0.02);
                    let values: Vec<f32> = values.iter().zip(steps).map(|(v, s)| v + s).collect();
                    (name, Tensor::float(Dtype::F32, &tensor.shape, &values))
                })
                .collect();
            fs::remove_file(self.path(name).join("model.safetensors")).unwrap();
            write_tensors(&self.path(name).join("model.safetensors"), &moved, &BTreeMap::new());
        }
    }

    /// Token ids, one row a sample.
    fn ids(&self, name: &str, rows: &[&[i32]]) {
        let ids: Vec<u8> = rows.iter().flat_map(|r| r.iter().flat_map(|id| id.to_le_bytes())).collect();
        let tensor = Tensor { dtype: Stored::I32, shape: vec![rows.len(), rows[0].len()], bytes: ids };
        let tensors = Tensors::from([("input_ids".to_owned(), tensor)]);
        write_tensors(&self.path(name), &tensors, &BTreeMap::new());
    }

    fn esmerge(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_esmerge"))
            .current_dir(self.0.path())
            .env("ESMERGE_DEVICE", "cpu")
            .args(arguments)
            .output()
            .unwrap()
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.esmerge(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The program refuses with one error that has these words, and writes nothing.
    fn refuses(&self, arguments: &[&str], words: &[&str]) {
        let files = || fs::read_dir(self.0.path()).unwrap().count();
        let before = files();
        let output = self.esmerge(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{text}");
        assert_eq!(text.matches("error: ").count(), 1, "{text}");
        for word in words {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
        assert_eq!(files(), before, "nothing is left behind");
    }
}

const IDS: [&[i32]; 3] = [&[7, 30, 12, 5], &[20, 21, 6, 39], &[33, 9, 9, 14]];

#[test]
fn a_merge_that_captures_gives_the_bytes_of_one_from_captured_files() {
    for architecture in ["bert", "llama", "clip"] {
        let place = Place::new();
        place.model("base", architecture, 0);
        place.model("a", architecture, 1);
        place.model("b", architecture, 2);
        let data = golden(&format!("{architecture}.safetensors")).display().to_string();
        for expert in ["a", "b"] {
            let out = format!("{expert}.calib");
            place.succeeds(&["capture", expert, "--data", &data, "--samples", "2", "-o", &out, "-q"]);
        }
        let recipe = |a: &str, b: &str| {
            format!(
                "merge_method: esm\nbase_model: base\nmodels:\n  - {{model: a, calibration: {a}}}\n  \
                 - {{model: b, calibration: {b}}}\nparameters: {{alpha: 0.7}}\n"
            )
        };
        place.write("file.yaml", recipe("a.calib", "b.calib"));
        let inside = format!("{{data: {data}, samples: 2}}");
        place.write("inside.yaml", recipe(&inside, &inside));
        place.write("mixed.yaml", recipe("a.calib", &inside));
        let merged = |name: &str| {
            place.succeeds(&["merge", &format!("{name}.yaml"), name, "-q"]);
            fs::read(place.path(name).join("model.safetensors")).unwrap()
        };
        let from_files = merged("file");
        assert!(from_files == merged("inside"), "{architecture}: captured inside");
        assert!(from_files == merged("mixed"), "{architecture}: one of each");
    }
}

#[test]
fn a_captured_file_belongs_to_its_expert_and_names_what_shares_inputs() {
    let place = Place::new();
    place.model("a", "llama", 1);
    place.ids("ids.safetensors", &IDS);
    place.succeeds(&["capture", "a", "--data", "ids.safetensors", "-o", "c.safetensors", "-q"]);
    let calibration = Calibration::open(&place.path("c.safetensors")).unwrap();
    assert!(calibration.has_fingerprint());
    let q = "layers.1.self_attn.q_proj.weight";
    assert_eq!(calibration.source_of("layers.1.self_attn.v_proj.weight"), Some((q, Statistic::Input)));
    let (gate, up) = ("layers.0.mlp.gate_proj.weight", "layers.0.mlp.up_proj.weight");
    assert_eq!(calibration.source_of(up), Some((gate, Statistic::Input)));
    assert_eq!(calibration.tokens(q), 12);

    place.succeeds(&[
        "capture",
        "a",
        "--data",
        "ids.safetensors",
        "-o",
        "g.safetensors",
        "--max-size",
        "1",
        "-q",
    ]);
    let grams = Calibration::open(&place.path("g.safetensors")).unwrap();
    // 12 tokens of 16 values are smaller than their Gram matrix: nothing is saved by it
    assert_eq!(grams.source_of(q), Some((q, Statistic::Input)));
    place.succeeds(&["capture", "a", "--synthetic", "-o", "s.safetensors", "--max-size", "1", "-q"]);
    let grams = Calibration::open(&place.path("s.safetensors")).unwrap();
    assert_eq!(grams.source_of(q), Some((q, Statistic::Gram)));
}

#[test]
fn images_in_a_folder_are_captured_the_same_twice_and_otherwise_with_another_seed() {
    let place = Place::new();
    place.model("a", "clip", 1);
    for i in 0..6u8 {
        let image = image::RgbImage::from_fn(16 + u32::from(i), 12, |x, y| {
            image::Rgb([i * 40, x as u8 * 9, y as u8 * 9])
        });
        fs::create_dir_all(place.path("photos/more")).unwrap();
        let name = if i % 2 == 0 { format!("photos/{i}.png") } else { format!("photos/more/{i}.jpg") };
        image.save(place.path(&name)).unwrap();
    }
    let capture = |out: &str, seed: &str| {
        place.succeeds(&[
            "capture",
            "a",
            "--data",
            "photos",
            "--samples",
            "3",
            "--seed",
            seed,
            "-o",
            out,
            "-q",
        ]);
        fs::read(place.path(out)).unwrap()
    };
    let first = capture("1.safetensors", "5");
    assert!(first == capture("2.safetensors", "5"));
    assert!(first != capture("3.safetensors", "6"));
}

#[test]
fn a_task_is_evaluated_with_a_linear_head() {
    let place = Place::new();
    place.model("a", "bert", 0);
    let ids: Vec<u8> = IDS.iter().flat_map(|r| r.iter().flat_map(|id| id.to_le_bytes())).collect();
    let weight: Vec<f32> = (0..32).map(|i| (i as f32).sin()).collect();
    let task = |labels: &[u8], classes: usize| {
        Tensors::from([
            (
                "test.input_ids".to_owned(),
                Tensor { dtype: Stored::I32, shape: vec![3, 4], bytes: ids.clone() },
            ),
            ("test.labels".to_owned(), Tensor { dtype: Stored::U8, shape: vec![3], bytes: labels.to_vec() }),
            ("head.weight".to_owned(), Tensor::float(Dtype::F32, &[classes, 32 / classes], &weight)),
        ])
    };
    let write = |name: &str, tensors: &Tensors| write_tensors(&place.path(name), tensors, &BTreeMap::new());
    let correct = |labels: &[u8]| -> usize {
        let name = "t.safetensors";
        let _ = fs::remove_file(place.path(name));
        write(name, &task(labels, 2));
        let text = place.succeeds(&["eval", "a", "--task", name, "--json", "-q"]);
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        report["tasks"][0]["accuracy"]["correct"].as_u64().unwrap() as usize
    };
    // every sample has one of two labels
    assert_eq!(correct(&[0, 0, 0]) + correct(&[1, 1, 1]), 3);

    write("range.safetensors", &task(&[0, 2, 0], 2));
    place.refuses(
        &["eval", "a", "--task", "range.safetensors", "-q"],
        &["test.labels", "label 2", "2 classes"],
    );
    write("width.safetensors", &task(&[0, 1, 0], 4));
    place.refuses(&["eval", "a", "--task", "width.safetensors", "-q"], &["features of 8", "gives 16"]);
    place.refuses(&["eval", "a", "--task", "range.safetensors", "--split", "val", "-q"], &["no split `val`"]);
    place.refuses(
        &["eval", "a", "--task", "none.safetensors", "-q"],
        &["none.safetensors", "no such task file"],
    );
    place.refuses(
        &["eval", "a", "--task", "t.safetensors", "--alpha", "2", "-q"],
        &["--alpha", "BASE+delta:FILE"],
    );
}

#[test]
fn samples_that_do_not_fit_are_refused_by_name() {
    let place = Place::new();
    place.model("text", "bert", 0);
    place.model("images", "clip", 0);
    place.write("texts.txt", "good\nbad\n");
    place.write("nothing.txt", "\n\n");
    place.write("photos/broken.png", "this is no image");
    fs::create_dir_all(place.path("empty")).unwrap();
    let capture = |model: &str, data: &str, words: &[&str]| {
        place.refuses(&["capture", model, "--data", data, "-o", "out.safetensors", "-q"], words);
    };
    capture("text", "texts.txt", &["tokenizer.json", "token ids"]);
    capture("images", "empty", &["empty", "no images", "png"]);
    capture("images", "photos", &["broken.png", "cannot be", "replace it"]);
    capture("images", "texts.txt", &["takes images"]);
    capture("text", "photos", &["reads text"]);
    capture("text", "absent", &["absent", "no such file"]);

    let long: Vec<i32> = (0..40).map(|i| i % 30).collect();
    place.ids("long.safetensors", &[&long]);
    capture("text", "long.safetensors", &["40 tokens", "position table of 32"]);
    place.ids("foreign.safetensors", &[&[3, 40]]);
    capture("text", "foreign.safetensors", &["id 40", "40 rows", "tokenizer"]);
    capture("images", "foreign.safetensors", &["texts", "images"]);
    place.write("bad.safetensors", "not a safetensors file at all");
    capture("text", "bad.safetensors", &["bad.safetensors", "not a valid safetensors file"]);
}

#[test]
fn models_that_cannot_be_run_are_refused_by_name() {
    let place = Place::new();
    place.ids("ids.safetensors", &IDS);
    let capture = |words: &[&str]| {
        place.refuses(&["capture", "m", "--data", "ids.safetensors", "-o", "out.safetensors", "-q"], words);
    };
    place.model("m", "llama", 0);
    let config = fs::read_to_string(place.path("m/config.json")).unwrap();
    place.write("m/config.json", config.replace("\"model_type\": \"llama\"", "\"model_type\": \"mamba\""));
    capture(&["`mamba`", "Llama", "docs/formats.md"]);
    place.write("m/config.json", config.replace("\"hidden_size\": 16", "\"hidden_size\": 32"));
    capture(&["shape", "[", "configuration"]);
    place.write("m/config.json", config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"));
    capture(&["layers.2.", "complete"]);
    place.write("m/config.json", config.replace("\"llama3\"", "\"yarn\""));
    capture(&["yarn"]);
    place.write("m/config.json", config.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": -4"));
    capture(&["num_attention_heads", "-4"]);
    place.write("m/config.json", "{");
    capture(&["config.json", "JSON"]);
    fs::remove_file(place.path("m/config.json")).unwrap();
    capture(&["config.json"]);
}

/// The snippet of docs/formats.md, where PyTorch and transformers are: it writes what `capture` writes.
#[test]
fn the_hooks_of_the_documentation_capture_the_same_inputs() {
    let python = std::env::var("ESMERGE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_torch = Command::new(&python).args(["-c", "import torch, transformers"]).output();
    if !has_torch.is_ok_and(|o| o.status.success()) {
        println!("skipped: {python} has no torch and transformers (name another with ESMERGE_PYTHON)");
        return;
    }
    let place = Place::new();
    place.model("expert", "llama", 1);
    place.ids("ids.safetensors", &IDS);
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/formats.md");
    let docs = fs::read_to_string(docs).unwrap();
    let snippet = docs.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let ids = format!("{IDS:?}");
    let script = format!(
        "import torch\nfrom transformers import AutoModel\nexpert = AutoModel.from_pretrained('expert').eval()\n\
         samples = [dict(input_ids=torch.tensor([ids])) for ids in {ids}]\n{snippet}"
    );
    place.write("script.py", script);
    let ran = Command::new(&python).arg("script.py").current_dir(place.0.path()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    place.succeeds(&["capture", "expert", "--data", "ids.safetensors", "-o", "ours.safetensors", "-q"]);

    let ours = Calibration::open(&place.path("ours.safetensors")).unwrap();
    let theirs = Calibration::open(&place.path("cars.safetensors")).unwrap();
    for weight in
        ["layers.0.self_attn.k_proj.weight", "layers.1.mlp.down_proj.weight", "layers.1.mlp.up_proj.weight"]
    {
        let read = |file: &Calibration| -> Vec<f32> {
            let (source, statistic) = file.source_of(weight).unwrap();
            bytemuck::pod_collect_to_vec(&file.read(source, statistic).unwrap().bytes)
        };
        let (a, b) = (read(&ours), read(&theirs));
        assert_eq!(a.len(), b.len(), "{weight}");
        let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 2e-5 * largest), "{weight}");
    }
}
