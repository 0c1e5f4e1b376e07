//! Heads through the program: kept beside a merged model, refitted to it, run as their architectures run them, and exported.

#[path = "common/place.rs"]
mod place;
#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::checkpoint::Stored;
use place::{Place, golden, ids};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use synthetic::{Numbers, Tensor, Tensors, read_tensors, write_tensors};

const SAMPLES: usize = 40;
const PROXIES: usize = 8;
const CLASSES: usize = 3;
const WIDTH: usize = 16;

/// Texts and labels at random.
fn task(seed: u64, proxies: usize) -> Tensors {
    let mut numbers = Numbers::new(seed);
    let mut below = |n: usize| ((numbers.next() + 1.0) / 2.0 * n as f32) as usize % n;
    let mut texts = |n: usize| {
        let rows: Vec<Vec<i32>> = (0..n).map(|_| (0..5).map(|_| below(40) as i32).collect()).collect();
        ids(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let (test, proxy) = (texts(SAMPLES), texts(proxies));
    let labels = (0..SAMPLES).map(|i| (i % CLASSES) as u8).collect();
    Tensors::from([
        ("proxy.input_ids".to_owned(), proxy),
        ("test.input_ids".to_owned(), test),
        ("test.labels".to_owned(), Tensor { dtype: Stored::U8, shape: vec![SAMPLES], bytes: labels }),
    ])
}

fn float(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::float(Dtype::F32, shape, values)
}

fn matrix(rows: usize, cols: usize, seed: u64) -> Tensor {
    float(&[rows, cols], &Numbers::new(seed).take(rows * cols, 1.0))
}

fn write(place: &Place, name: &str, tensors: &Tensors, metadata: &[(&str, &str)]) {
    let metadata: BTreeMap<String, String> =
        metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    write_tensors(&place.path(name), tensors, &metadata);
}

/// The golden BERT, moved, as a `BertForSequenceClassification` of its own pooler and head.
fn classifier(place: &Place, name: &str, seed: u64) {
    place.model(name, "bert", seed);
    let encoder = read_tensors(&place.path(name));
    let mut tensors: Tensors = encoder.into_iter().map(|(name, t)| (format!("bert.{name}"), t)).collect();
    for (name, t) in [
        ("bert.pooler.dense.weight", matrix(WIDTH, WIDTH, seed + 1)),
        ("bert.pooler.dense.bias", float(&[WIDTH], &Numbers::new(seed + 2).take(WIDTH, 1.0))),
        ("classifier.weight", matrix(CLASSES, WIDTH, seed + 3)),
        ("classifier.bias", float(&[CLASSES], &[0.1, -0.2, 0.3])),
    ] {
        tensors.insert(name.to_owned(), t);
    }
    write(place, &format!("{name}/model.safetensors"), &tensors, &[]);
    let text = fs::read_to_string(golden("bert").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["architectures"] = serde_json::json!(["BertForSequenceClassification"]);
    config["id2label"] = serde_json::json!({"0": "bad", "1": "fair", "2": "good"});
    place.write(&format!("{name}/config.json"), config.to_string());
}

/// A plain base, two classifiers and a task of each.
fn family() -> Place {
    let place = Place::new();
    place.model("base", "bert", 0);
    for (name, seed) in [("a", 20), ("b", 30)] {
        classifier(&place, name, seed);
        write(&place, &format!("{name}.task.safetensors"), &task(seed, PROXIES), &[("task", name)]);
    }
    recipe(&place, "recipe.yaml", &["a", "b"], "");
    place
}

fn recipe(place: &Place, name: &str, experts: &[&str], more: &str) {
    let models: String =
        experts.iter().map(|e| format!("  - {{model: {e}, task: {e}.task.safetensors}}\n")).collect();
    let text = format!(
        "merge_method: task_arithmetic\nbase_model: base\nmodels:\n{models}parameters: {{alpha: 0.7}}\n{more}"
    );
    place.write(name, text);
}

fn answers(place: &Place, model: &str, task: &str, flags: &[&str]) -> String {
    let task = format!("{task}.task.safetensors");
    let arguments = [&["eval", model, "--json", "-q", "--task", &task][..], flags].concat();
    let report: Value = serde_json::from_str(&place.succeeds(&arguments)).unwrap();
    report["tasks"][0]["answers"].as_str().unwrap().to_owned()
}

fn head(place: &Place, folder: &str, name: &str) -> BTreeMap<String, Tensor> {
    read_tensors(&place.path(&format!("{folder}/{name}/head.safetensors")))
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.values(), b.values());
    assert_eq!(a.len(), b.len());
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn a_models_own_pooler_comes_before_a_head() {
    let place = family();
    let own = answers(&place, "a", "a", &[]); // neither the task nor a folder has a head
    assert!(own.contains('0') && own.contains('1'), "{own}");

    // a task that brings the head alone: the pooler is the model's
    let weights = read_tensors(&place.path("a"));
    let mut tensors = task(20, PROXIES);
    for (from, to) in [("classifier.weight", "head.weight"), ("classifier.bias", "head.bias")] {
        tensors.insert(to.to_owned(), weights[from].clone());
    }
    write(&place, "a.task.safetensors", &tensors, &[("task", "a"), ("pooling", "cls")]);
    assert_eq!(answers(&place, "a", "a", &[]), own);

    // one that brings both, on the encoder alone
    for (from, to) in [("weight", "dense.weight"), ("bias", "dense.bias")] {
        tensors.insert(to.to_owned(), weights[&format!("bert.pooler.dense.{from}")].clone());
    }
    let metadata = [("task", "a"), ("pooling", "cls"), ("activation", "tanh")];
    write(&place, "a.task.safetensors", &tensors, &metadata);
    let encoder: Tensors = weights
        .iter()
        .filter(|(name, _)| name.starts_with("bert.e"))
        .map(|(name, t)| (name["bert.".len()..].to_owned(), t.clone()))
        .collect();
    place.model("encoder", "bert", 0);
    write(&place, "encoder/model.safetensors", &encoder, &[]);
    assert_eq!(answers(&place, "encoder", "a", &[]), own);

    write(&place, "a.task.safetensors", &tensors, &[("task", "a"), ("pooling", "cls")]);
    place
        .refuses(&["eval", "encoder", "-q", "--task", "a.task.safetensors"], &["activation", "tanh or relu"]);
}

#[test]
fn heads_are_kept_by_a_merge_and_exported_as_models() {
    let place = family();
    for mode in ["keep", "refit"] {
        recipe(&place, "recipe.yaml", &["a", "b"], &format!("heads: {mode}\n"));
        place.succeeds(&["merge", "recipe.yaml", mode, "-q"]);
        for name in ["a", "b"] {
            let kept = head(&place, &format!("{mode}/heads"), name);
            let own = read_tensors(&place.path(name));
            assert_eq!(kept["dense.weight"].bytes, own["bert.pooler.dense.weight"].bytes);
            assert_eq!(kept["head.weight"].bytes == own["classifier.weight"].bytes, mode == "keep");

            let exported = format!("{mode}-{name}");
            place.succeeds(&["export-head", mode, name, &exported]);
            let tensors = read_tensors(&place.path(&exported));
            assert_eq!(tensors.keys().collect::<Vec<_>>(), own.keys().collect::<Vec<_>>());
            assert_eq!(answers(&place, &exported, name, &[]), answers(&place, mode, name, &[]));
            let config = fs::read_to_string(place.path(&exported).join("config.json")).unwrap();
            assert!(config.contains("BertForSequenceClassification") && config.contains("fair"), "{config}");
        }
    }
    place.refuses(&["export-head", "keep", "c", "out"], &["no head `c`", "it has a, b"]);
    place.refuses(&["export-head", "a", "a", "out"], &["no head `a`", "heads: keep"]);
}

#[test]
fn a_rescaled_model_has_the_heads_that_lie_beside_the_deltas_and_refitted_ones_are_told() {
    let place = family();
    for (mode, told) in [("keep", false), ("refit", true)] {
        recipe(&place, "recipe.yaml", &["a", "b"], &format!("heads: {mode}\n"));
        let kept = format!("{mode}/delta.safetensors");
        place.succeeds(&["merge", "recipe.yaml", mode, "-q", "--keep-delta", "kept.safetensors", "--force"]);
        fs::rename(place.path("kept.safetensors"), place.path(&kept)).unwrap();
        let other = format!("{mode}-other");
        let output = place.esmerge(&["rescale", &kept, "--base", "base", "--alpha", "0.3", &other]);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.contains("refit them to this model"), told, "{said}");
        for name in ["a", "b"] {
            let file =
                |folder: &str| fs::read(place.path(&format!("{folder}/heads/{name}/head.safetensors")));
            assert_eq!(file(mode).unwrap(), file(&other).unwrap());
        }
    }
}

#[test]
fn a_dry_run_finds_heads_that_cannot_be_refitted() {
    let place = family();
    recipe(&place, "recipe.yaml", &["a", "b"], "heads: refit\n");
    place.succeeds(&["merge", "recipe.yaml", "--dry-run", "-q"]);
    fs::remove_file(place.path("a.task.safetensors")).unwrap();
    place.refuses(&["merge", "recipe.yaml", "--dry-run", "-q"], &["a.task.safetensors"]);
}

#[test]
fn heads_come_back_where_the_merged_model_is_the_expert() {
    let place = family();
    recipe(&place, "alone.yaml", &["a"], "");
    let heads = |flags: &[&str]| {
        let fixed = ["heads", "a", "--experts", "alone.yaml", "-o", "out", "--force", "--json", "-q"];
        serde_json::from_str::<Value>(&place.succeeds(&[&fixed[..], flags].concat())).unwrap()
    };
    let report = heads(&["--mode", "refit"]);
    assert_eq!((&report["heads"][0]["before"], &report["heads"][0]["after"]), (&1.0.into(), &1.0.into()));
    let own = read_tensors(&place.path("a"));
    let refitted = head(&place, "out", "a");
    assert!(distance(&refitted["head.weight"], &own["classifier.weight"]) < 1e-6);
    assert!(distance(&refitted["head.bias"], &own["classifier.bias"]) < 1e-6);
    // there is nothing to win, so that the head is left alone
    assert_eq!(heads(&[])["heads"][0]["refitted"], false);
    assert_eq!(head(&place, "out", "a")["head.weight"].bytes, own["classifier.weight"].bytes);
}

#[test]
fn the_order_of_experts_changes_no_head_and_class_embeddings_keep_their_lengths() {
    let place = family();
    for name in ["a", "b"] {
        let mut tensors = task(20, PROXIES);
        tensors.insert("class_embeddings".to_owned(), matrix(CLASSES, WIDTH, 5));
        write(&place, &format!("{name}.task.safetensors"), &tensors, &[("task", name)]);
    }
    for (experts, out) in [(["a", "b"], "first"), (["b", "a"], "last")] {
        recipe(&place, "recipe.yaml", &experts, "");
        let data = ["--data", "a.task.safetensors", "b=b.task.safetensors"];
        let fixed = ["heads", "base", "--experts", "recipe.yaml", "--mode", "refit", "-o", out, "-q"];
        place.succeeds(&[&fixed[..], &data].concat());
    }
    for name in ["a", "b"] {
        let (first, last) = (head(&place, "first", name), head(&place, "last", name));
        let rows = &first["class_embeddings"];
        assert!(distance(rows, &last["class_embeddings"]) < 1e-5);
        let norm = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!(rows.values().chunks(WIDTH).any(|row| (norm(row) - 1.0).abs() > 1e-3));
    }
    let with = |flags: &[&str]| answers(&place, "base", "a", flags);
    assert_eq!(with(&["--heads", "first"]), with(&["--heads", "last"]));
}

#[test]
fn too_little_to_refit_on_is_refused_before_any_work() {
    let place = family();
    write(&place, "a.task.safetensors", &task(20, 3), &[("task", "a")]);
    let few = ["heads", "base", "--experts", "recipe.yaml", "-o", "out", "-q"];
    place.refuses(&few, &["a.task.safetensors", "3 samples", "4 are the least", "32"]);
    recipe(&place, "heads.yaml", &["a", "b"], "heads: auto\n");
    place.refuses(&["merge", "heads.yaml", "out", "-q"], &["3 samples", "4 are the least"]);
    place.refuses(
        &[&few[..], &["--data", "c=b.task.safetensors"]].concat(),
        &["no expert", "`c`", "it has a, b"],
    );
    place.write("plain.yaml", "merge_method: linear\nbase_model: base\nmodels:\n  - model: a\n");
    place.refuses(&["heads", "base", "--experts", "plain.yaml", "-o", "out", "-q"], &["`a`", "no samples"]);
    place.write("none.yaml", "merge_method: linear\nmodels:\n  - model: base\n  - model: a\n");
    place.refuses(
        &["heads", "base", "--experts", "none.yaml", "--mode", "keep", "-o", "out", "-q"],
        &["`base`", "no head", "class_embeddings"],
    );
    recipe(&place, "wrong.yaml", &["a", "b"], "heads: {mode: auto, lam: 0}\n");
    place.refuses(&["merge", "wrong.yaml", "out", "-q"], &["heads.lam", "above 0"]);
}
