//! `eval` through the program: accuracy and its interval, experts, consistency, task vectors, comparison.

#[path = "common/place.rs"]
mod place;
#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::checkpoint::Stored;
use place::{Place, ids};
use serde_json::Value;
use std::collections::BTreeMap;
use synthetic::{Numbers, Tensor, Tensors, read_tensors, write_tensors};

const SAMPLES: usize = 40;
const CLASSES: usize = 3;
const WIDTH: usize = 16;

/// A base, two experts and a task for each, with labels at random: accuracies near 1/3, and never all the same.
fn family() -> Place {
    let place = Place::new();
    for (name, seed) in [("base", 0), ("a", 1), ("b", 2)] {
        place.model(name, "bert", seed);
    }
    place.write(
        "recipe.yaml",
        "merge_method: linear\nbase_model: base\nmodels:\n  - model: a\n  - model: b\nparameters: {alpha: 1}\n",
    );
    for (task, seed) in [("a", 11), ("b", 12)] {
        let mut numbers = Numbers::new(seed);
        let mut below = |n: usize| ((numbers.next() + 1.0) / 2.0 * n as f32) as usize % n;
        let rows: Vec<Vec<i32>> = (0..SAMPLES).map(|_| (0..5).map(|_| below(40) as i32).collect()).collect();
        let rows: Vec<&[i32]> = rows.iter().map(Vec::as_slice).collect();
        let labels = (0..SAMPLES).map(|_| below(CLASSES) as u8).collect();
        let heads = Numbers::new(seed + 10).take(CLASSES * WIDTH, 1.0);
        let tensors = Tensors::from([
            ("test.input_ids".to_owned(), ids(&rows)),
            ("test.labels".to_owned(), Tensor { dtype: Stored::U8, shape: vec![SAMPLES], bytes: labels }),
            ("class_embeddings".to_owned(), Tensor::float(Dtype::F32, &[CLASSES, WIDTH], &heads)),
        ]);
        write_tensors(&place.path(&format!("{task}.task.safetensors")), &tensors, &task_name(task));
    }
    place
}

fn task_name(task: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("task".to_owned(), task.to_owned())])
}

const TASKS: [&str; 3] = ["--task", "a.task.safetensors", "b.task.safetensors"];

fn eval(place: &Place, model: &str, flags: &[&str]) -> Value {
    let arguments = [&["eval", model, "--json", "-q"], &TASKS[..], flags].concat();
    serde_json::from_str(&place.succeeds(&arguments)).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// What two models answered on every task.
fn answers(report: &Value) -> Vec<&str> {
    report["tasks"].as_array().unwrap().iter().map(|t| t["answers"].as_str().unwrap()).collect()
}

#[test]
fn accuracy_comes_with_wilsons_interval_and_an_average() {
    let report = eval(&family(), "a", &[]);
    let (mut sum, mut variance) = (0.0, 0.0);
    for task in report["tasks"].as_array().unwrap() {
        let right = task["answers"].as_str().unwrap().matches('1').count();
        assert_eq!(task["accuracy"]["correct"], right);
        let (p, n, z) = (right as f64 / SAMPLES as f64, SAMPLES as f64, 1.959964);
        assert!(p > 0.05 && p < 0.95, "{p}: the test should have right and wrong answers");
        assert!((number(&task["value"]) - p).abs() < 1e-12);
        let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
        assert!((number(&task["interval"][0]) - (centre - half)).abs() < 1e-6);
        assert!((number(&task["interval"][1]) - (centre + half)).abs() < 1e-6);
        (sum, variance) = (sum + p, variance + p * (1.0 - p) / n);
    }
    assert!((number(&report["average"]) - sum / 2.0).abs() < 1e-12);
    assert!((number(&report["average_margin"]) - 1.959964 * variance.sqrt() / 2.0).abs() < 1e-6);
    assert!(report.get("normalized_average").is_none() && report.get("cka_average").is_none());
}

#[test]
fn experts_are_paired_with_tasks_by_name_and_normalise() {
    let place = family();
    let alone = eval(&place, "b", &[]);
    let beside = eval(&place, "a", &["--experts", "recipe.yaml"]);
    let [a, b] = &beside["tasks"].as_array().unwrap()[..] else { panic!() };
    // expert a is what a's task is normalised by: itself
    assert_eq!((number(&a["normalized"]), &a["expert"]), (1.0, &a["value"]));
    assert!((number(&a["cka"]) - 1.0).abs() < 1e-9);
    assert_eq!(b["expert"], alone["tasks"][1]["value"]);
    let normalised = number(&b["value"]) / number(&b["expert"]);
    assert!((number(&b["normalized"]) - normalised).abs() < 1e-12);
    assert!((number(&beside["normalized_average"]) - (1.0 + normalised) / 2.0).abs() < 1e-12);
    assert!(number(&b["cka"]) < 1.0 - 1e-6);

    place.write("one.yaml", "merge_method: linear\nbase_model: base\nmodels:\n  - model: a\n");
    let arguments = [&["eval", "a", "-q", "--experts", "one.yaml"], &TASKS[..]].concat();
    place.refuses(&arguments, &["one.yaml", "`b`", "it has a"]);
}

#[test]
fn consistency_with_another_model_is_centred_cka() {
    let place = family();
    let with_itself = eval(&place, "a", &["--against", "a"]);
    assert!((number(&with_itself["cka_average"]) - 1.0).abs() < 1e-9);
    let with_other = eval(&place, "a", &["--against", "b"]);
    let cka = number(&with_other["cka_average"]);
    assert!(cka > 0.0 && cka < 1.0 - 1e-6, "{cka}");
    assert!(with_other["tasks"][0].get("normalized").is_none());
}

#[test]
fn a_task_vector_is_evaluated_without_a_merge_and_alpha_scales_it() {
    let place = family();
    let (base, a) = (read_tensors(&place.path("base")), read_tensors(&place.path("a")));
    // differences of f32 are not exact in general, and no answer hangs on the last bit here
    let delta = a.iter().map(|(name, tensor)| {
        let steps: Vec<f32> = tensor.values().iter().zip(base[name].values()).map(|(a, b)| a - b).collect();
        (name.clone(), Tensor::float(Dtype::F32, &tensor.shape, &steps))
    });
    write_tensors(&place.path("a.delta.safetensors"), &delta.collect(), &BTreeMap::new());
    let model = "base+delta:a.delta.safetensors";
    assert_eq!(answers(&eval(&place, model, &[])), answers(&eval(&place, "a", &[])));
    assert_eq!(answers(&eval(&place, model, &["--alpha", "0"])), answers(&eval(&place, "base", &[])));

    // deltas that a merge kept, at its alpha and at another
    place.succeeds(&[
        "merge",
        "recipe.yaml",
        "merged",
        "--keep-delta",
        "kept.safetensors",
        "--alpha",
        "0.9",
        "-q",
    ]);
    place.succeeds(&["rescale", "kept.safetensors", "--base", "base", "--alpha", "2", "other", "-q"]);
    let kept = "base+delta:kept.safetensors";
    assert_eq!(answers(&eval(&place, kept, &[])), answers(&eval(&place, "merged", &[])));
    assert_eq!(answers(&eval(&place, kept, &["--alpha", "2"])), answers(&eval(&place, "other", &[])));
}

#[test]
fn two_models_are_compared_sample_by_sample() {
    let place = family();
    let base = eval(&place, "base", &[]);
    place.write("base.json", base.to_string());
    let same = eval(&place, "base", &["--compare", "base.json"]);
    assert_eq!((number(&same["difference"]["value"]), number(&same["difference"]["margin"])), (0.0, 0.0));

    let moved = eval(&place, "a", &["--compare", "base.json"]);
    let mut sum = 0.0;
    for (task, (now, before)) in
        moved["tasks"].as_array().unwrap().iter().zip(answers(&moved).into_iter().zip(answers(&base)))
    {
        let gains = now.bytes().zip(before.bytes()).map(|(a, b)| f64::from(a) - f64::from(b));
        let gains: Vec<f64> = gains.collect();
        let n = gains.len() as f64;
        let mean = gains.iter().sum::<f64>() / n;
        let variance = gains.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / n;
        assert!((number(&task["difference"]["value"]) - mean).abs() < 1e-12);
        assert!((number(&task["difference"]["margin"]) - 1.959964 * (variance / n).sqrt()).abs() < 1e-6);
        sum += mean;
    }
    assert!((number(&moved["difference"]["value"]) - sum / 2.0).abs() < 1e-12);

    let compare = |flags: &[&str], words: &[&str]| {
        place.refuses(&[&["eval", "a", "-q"], &TASKS[..], flags].concat(), words);
    };
    compare(&["--compare", "none.json"], &["none.json", "cannot be read"]);
    compare(&["--compare", "recipe.yaml"], &["recipe.yaml", "not valid JSON"]);
    place.write("other.json", "{\"model\": \"a\"}");
    compare(&["--compare", "other.json"], &["other.json", "esmerge eval --json"]);
    compare(&["--compare", "base.json", "--split", "test[:20]"], &["base.json", "test[:20]", "same samples"]);
}

#[test]
fn the_table_says_what_the_json_says() {
    let place = family();
    let report = eval(&place, "a", &["--experts", "recipe.yaml"]);
    let arguments = [&["eval", "a", "-q", "--experts", "recipe.yaml"], &TASKS[..]].concat();
    let table = place.succeeds(&arguments);
    for head in ["task", "samples", "accuracy", "95% interval", "expert", "normalised", "CKA"] {
        assert!(table.contains(head), "{head} is not in {table}");
    }
    let percent = |v: &Value| format!("{:.1}", 100.0 * number(v));
    for task in report["tasks"].as_array().unwrap() {
        let line = table.lines().find(|l| l.trim().starts_with(task["task"].as_str().unwrap())).unwrap();
        for key in ["value", "expert", "normalized"] {
            assert!(line.contains(&percent(&task[key])), "{key} is not in {line}");
        }
        let ends = format!("{} to {}", percent(&task["interval"][0]), percent(&task["interval"][1]));
        assert!(line.contains(&ends), "{line}");
    }
    assert!(table.contains("average"));
}
