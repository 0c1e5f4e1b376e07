//! The choice of alpha through the program: what it finds, and what it refuses before any layer is merged.

#[path = "common/place.rs"]
mod place;
#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::checkpoint::Stored;
use place::{IDS, Place, golden, ids};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use synthetic::{Numbers, Tensor, Tensors, write_tensors};

const WIDTH: usize = 16;
const CLASSES: usize = 2;

/// A base and two experts of BERT's kind.
fn family() -> Place {
    let place = Place::new();
    for (name, seed) in [("base", 0), ("a", 1), ("b", 2)] {
        place.model(name, "bert", seed);
    }
    place
}

/// A task file with the same labelled texts as `val`, and the same unlabelled ones as `proxy`.
fn task(place: &Place, name: &str, edit: impl FnOnce(&mut Tensors)) {
    let labels = Tensor { dtype: Stored::U8, shape: vec![IDS.len()], bytes: vec![0, 1, 1] };
    let head = Numbers::new(5).take(CLASSES * WIDTH, 1.0);
    let mut tensors = Tensors::from([
        ("val.input_ids".to_owned(), ids(&IDS)),
        ("val.labels".to_owned(), labels),
        ("proxy.input_ids".to_owned(), ids(&IDS)),
        ("head.weight".to_owned(), Tensor::float(Dtype::F32, &[CLASSES, WIDTH], &head)),
    ]);
    edit(&mut tensors);
    write_tensors(&place.path(name), &tensors, &BTreeMap::new());
}

/// A recipe in which both experts have the same keys beside their path.
fn recipe(place: &Place, name: &str, method: &str, keys: &str, alpha: &str) {
    let text = format!(
        "merge_method: {method}\nbase_model: base\nmodels:\n  - {{model: a{keys}}}\n  - {{model: b{keys}}}\n\
         parameters: {{alpha: {alpha}}}\nout_dtype: float32\n"
    );
    place.write(name, text);
}

const CALIBRATED: &str = ", calibration: {data: t.safetensors}";

#[test]
fn every_method_finds_an_alpha_and_merges_with_it() {
    let place = family();
    task(&place, "t.safetensors", |_| {});
    for (method, calibration) in [("esm", CALIBRATED), ("tsv_m", ""), ("task_arithmetic", ""), ("linear", "")]
    {
        for search in ["accuracy", "consistency"] {
            let keys = format!("{calibration}, task: t.safetensors");
            recipe(&place, "r.yaml", method, &keys, &format!("{{search: {search}}}"));
            let (found, fixed) = (format!("{method}-{search}"), format!("{method}-{search}-fixed"));
            place.succeeds(&["merge", "r.yaml", &found, "-q"]);
            let report = fs::read(place.path(&found).join("esmerge-report.json")).unwrap();
            let report: Value = serde_json::from_slice(&report).unwrap();
            assert_eq!(report["alpha_search"]["by"], search);
            let probes = report["alpha_search"]["probes"].as_array().unwrap();
            let value = |probe: &Value| probe["value"].as_f64().unwrap();
            let best = probes.iter().map(value).fold(f64::MIN, f64::max);
            let chosen = probes.iter().find(|p| p["alpha"] == report["alpha"]).unwrap();
            assert_eq!(value(chosen), best, "{method}, {search}");

            recipe(&place, "r.yaml", method, &keys, &report["alpha"].to_string());
            place.succeeds(&["merge", "r.yaml", &fixed, "-q"]);
            let bytes = |folder: &str| fs::read(place.path(folder).join("model.safetensors")).unwrap();
            assert!(
                bytes(&found) == bytes(&fixed),
                "{method}, {search}: the alpha found is not the one used"
            );
        }
    }
}

/// The average of one expert twice moves exactly as the expert did where alpha is 1, and there alone.
#[test]
fn consistency_is_highest_where_the_model_moves_as_the_expert_did() {
    let place = family();
    let mut numbers = Numbers::new(9);
    let texts: Vec<Vec<i32>> =
        (0..24).map(|_| (0..6).map(|_| ((numbers.next() + 1.0) * 19.0) as i32).collect()).collect();
    let texts: Vec<&[i32]> = texts.iter().map(Vec::as_slice).collect();
    task(&place, "t.safetensors", |t| {
        t.insert("proxy.input_ids".to_owned(), ids(&texts));
    });
    place.write(
        "r.yaml",
        "merge_method: linear\nbase_model: base\nmodels:\n  - {model: a, task: t.safetensors}\n  - {model: a, name: \
         twin, task: t.safetensors}\nparameters: {alpha: {search: consistency}}\n",
    );
    let report: Value =
        serde_json::from_str(&place.succeeds(&["merge", "r.yaml", "out", "--json", "-q"])).unwrap();
    let alpha = report["alpha"].as_f64().unwrap();
    assert!((alpha - 1.0).abs() < 0.1, "{alpha}");
    assert!(place.succeeds(&["merge", "r.yaml", "--dry-run"]).contains("searched by consistency"));
}

/// The merge and its dry run, which reads no weights, refuse alike.
fn refuses(place: &Place, words: &[&str]) {
    place.refuses(&["merge", "r.yaml", "--dry-run", "-q"], words);
    place.refuses(&["merge", "r.yaml", "out", "-q"], words);
}

#[test]
fn a_search_by_accuracy_needs_fitting_labelled_tasks() {
    let place = family();
    recipe(&place, "r.yaml", "tsv_m", "", "{search: accuracy}");
    refuses(&place, &["r.yaml", "models[0].task", "missing", "labelled"]);
    recipe(&place, "r.yaml", "tsv_m", ", task: t.safetensors", "{search: accuracy}");
    refuses(&place, &["t.safetensors", "no such task file"]);
    place.write("t.safetensors", "no safetensors");
    refuses(&place, &["t.safetensors", "not a valid safetensors file"]);

    let with = |edit: &dyn Fn(&mut Tensors), words: &[&str]| {
        task(&place, "t.safetensors", edit);
        refuses(&place, words);
    };
    let labels =
        |values: &[u8]| Tensor { dtype: Stored::U8, shape: vec![values.len()], bytes: values.to_vec() };
    let remove = |name: &'static str| {
        move |t: &mut Tensors| {
            t.shift_remove(name);
        }
    };
    with(&remove("val.input_ids"), &["parameters.alpha", "no split `val`", "test[:20%]"]);
    with(&remove("val.labels"), &["t.safetensors", "no `val.labels`"]);
    with(&remove("head.weight"), &["t.safetensors", "class_embeddings", "head.weight"]);
    with(
        &|t| drop(t.insert("val.labels".into(), labels(&[0, 1, 2]))),
        &["val.labels", "label 2", "2 classes"],
    );
    with(&|t| drop(t.insert("val.labels".into(), labels(&[0, 1]))), &["val.labels", "[2]", "3 samples"]);
    let narrow = Tensor::float(Dtype::F32, &[2, 8], &[0.5; 16]);
    with(&|t| drop(t.insert("head.weight".into(), narrow.clone())), &["features of 8", "gives 16"]);
    let long: Vec<i32> = (0..40).collect();
    with(
        &|t| {
            t.insert("val.input_ids".into(), ids(&[&long]));
            t.insert("val.labels".into(), labels(&[0]));
        },
        &["t.safetensors", "40 tokens", "position table of 32"],
    );
    with(
        &|t| {
            t.insert("val.input_ids".into(), ids(&[&[3, 40]]));
            t.insert("val.labels".into(), labels(&[0]));
        },
        &["t.safetensors", "id 40", "40 rows"],
    );
    with(
        &|t| {
            t.shift_remove("val.input_ids");
            t.insert("val.pixel_values".into(), Tensor::float(Dtype::F32, &[3, 1, 2, 2], &[0.0; 12]));
        },
        &["t.safetensors", "images", "reads text"],
    );
    task(&place, "t.safetensors", |_| {});
    recipe(&place, "r.yaml", "tsv_m", ", task: t.safetensors", "{search: accuracy, split: 'val[:0]'}");
    refuses(&place, &["val[:0]", "no samples"]);
    recipe(&place, "r.yaml", "tsv_m", ", task: t.safetensors", "{search: accuracy, split: test}");
    refuses(&place, &["no split `test`"]);
    recipe(&place, "r.yaml", "tsv_m", ", task: t.safetensors", "{search: accuracy, split: 'val[x]'}");
    refuses(&place, &["parameters.alpha.split", "val[x]"]);
    recipe(&place, "r.yaml", "tsv_m", ", task: t.safetensors", "{search: beauty}");
    refuses(&place, &["parameters.alpha.search", "accuracy", "consistency"]);
}

#[test]
fn a_search_by_consistency_needs_samples_that_the_experts_take() {
    let place = family();
    recipe(&place, "r.yaml", "linear", "", "{search: consistency}");
    refuses(&place, &["r.yaml", "models[0].task", "missing", "proxies"]);
    recipe(&place, "r.yaml", "linear", ", task: t.safetensors", "{search: consistency}");
    refuses(&place, &["t.safetensors", "no such file"]);
    task(&place, "t.safetensors", |t| {
        t.shift_remove("proxy.input_ids");
    });
    refuses(&place, &["t.safetensors", "no samples to calibrate with", "proxy.input_ids"]);
    task(&place, "t.safetensors", |_| {});
    recipe(&place, "r.yaml", "linear", ", task: t.safetensors", "{search: consistency, split: val}");
    refuses(&place, &["parameters.alpha.split", "unlabelled"]);
    let config = fs::read_to_string(place.path("b/config.json")).unwrap();
    recipe(&place, "r.yaml", "linear", ", task: t.safetensors", "{search: consistency}");
    for model in ["base", "a", "b"] {
        let path = format!("{model}/config.json");
        place.write(&path, config.replace("\"model_type\": \"bert\"", "\"model_type\": \"mamba\""));
    }
    refuses(&place, &["`mamba`", "docs/formats.md"]);
}

#[test]
fn calibration_data_that_cannot_be_used_is_refused_while_planning() {
    let place = family();
    let with = |data: &str, words: &[&str]| {
        recipe(&place, "r.yaml", "esm", &format!(", calibration: {{data: {data}, samples: 2}}"), "1");
        refuses(&place, words);
    };
    with("absent", &["absent", "no such file"]);
    place.write("texts.txt", "good\nbad\n");
    with("texts.txt", &["tokenizer.json", "token ids"]);
    let long: Vec<i32> = (0..40).map(|i| i % 30).collect();
    place.ids("long.safetensors", &[&long]);
    with("long.safetensors", &["long.safetensors", "40 tokens", "position table of 32"]);
    place.ids("foreign.safetensors", &[&[3, 40]]);
    with("foreign.safetensors", &["foreign.safetensors", "id 40", "tokenizer"]);
    let images = golden("clip.safetensors").display().to_string();
    with(&images, &["clip.safetensors", "images", "reads text"]);
}
