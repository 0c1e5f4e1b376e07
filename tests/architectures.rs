//! Rules for architectures whose weights are stored or fed otherwise: GPT-2's linear weights, and mixtures of experts.

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::calibration::{Entry, Writer};
use std::collections::BTreeMap;
use std::fs;
use synthetic::{Family, Numbers, Tensor, Tensors};

/// A family whose models have these tensors, moved a little in the experts.
fn family(model_type: &str, tensors: &[(&str, [usize; 2])], across: bool) -> Family {
    let family = Family::new();
    let moved = |seed: Option<u64>| -> Tensors {
        let (mut of_base, mut of_expert) = (Numbers::new(3), Numbers::new(seed.unwrap_or(0)));
        let scale = if seed.is_some() { 0.1 } else { 0.0 };
        let tensor = |&(name, [rows, cols]): &(&str, [usize; 2])| {
            let mut value = || of_base.next() + scale * of_expert.next();
            let values: Vec<f32> = (0..rows * cols).map(|_| value()).collect();
            let stored = if across { transposed(&values, rows, cols) } else { values };
            let shape = if across { [cols, rows] } else { [rows, cols] };
            (name.to_owned(), Tensor::float(Dtype::F32, &shape, &stored))
        };
        tensors.iter().map(tensor).collect()
    };
    for (folder, seed) in [("base", None), ("experts/cars", Some(1)), ("experts/birds", Some(2))] {
        family.write_model(folder, &moved(seed));
        family.write(&format!("{folder}/config.json"), format!(r#"{{"model_type": "{model_type}"}}"#));
    }
    family
}

fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|at| x[at % rows * cols + at / rows]).collect()
}

/// Inputs of some weights, so many tokens each.
fn calibrate(family: &Family, expert: &str, seed: u64, inputs: &[(&str, usize, usize)]) {
    let mut numbers = Numbers::new(seed);
    let path = family.path(&format!("calibration/{expert}.safetensors"));
    fs::remove_file(&path).unwrap();
    let mut writer = Writer::create(&path, false).unwrap();
    for &(weight, tokens, d_in) in inputs {
        let input = Some(numbers.take(tokens * d_in, 1.0));
        writer.add(weight, &Entry { tokens, d_in, input, gram: None, mean: None }, &[]).unwrap();
    }
    writer.finish(4, None).unwrap();
}

#[test]
fn weights_that_are_stored_across_merge_as_if_they_were_not() {
    let shapes = [[24, 8], [8, 8], [32, 8], [8, 32]];
    let names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"].map(|n| format!("h.0.{n}.weight"));
    let tensors: Vec<(&str, [usize; 2])> = names.iter().map(String::as_str).zip(shapes).collect();
    let merged = [("gpt2", true), ("gpt_neox", false)].map(|(model_type, across)| {
        let family = family(model_type, &tensors, across);
        for (expert, seed) in [("cars", 1), ("birds", 2)] {
            let inputs: Vec<_> = tensors.iter().map(|&(name, [_, d_in])| (name, 11, d_in)).collect();
            calibrate(&family, expert, seed, &inputs);
        }
        family.merged(&["--accuracy", "exact"])
    });
    for &(name, [rows, cols]) in &tensors {
        let [across, plain] = merged.each_ref().map(|m| &m[name]);
        assert_eq!(across.shape, [cols, rows], "{name}");
        assert_eq!(across.values(), transposed(&plain.values(), rows, cols), "{name}");
    }
}

#[test]
fn an_expert_of_a_mixture_that_saw_few_tokens_is_merged_by_tsv_m_and_the_report_says_so() {
    let names = [0, 1, 2].map(|e| format!("model.layers.0.mlp.experts.{e}.up_proj.weight"));
    let [enough, few, none] = names.each_ref().map(String::as_str);
    let gate = "model.layers.0.mlp.gate.weight";
    let tensors = [(enough, [24, 8]), (few, [24, 8]), (none, [24, 8]), (gate, [3, 8])];
    let family = family("qwen3_moe", &tensors, false);
    calibrate(&family, "cars", 1, &[(enough, 16, 8), (few, 15, 8), (none, 40, 8)]);
    calibrate(&family, "birds", 2, &[(enough, 40, 8), (few, 40, 8)]);
    let by_esm = family.merged(&[]);
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
    let of = |name: &str| {
        let layers = report["layers"].as_array().unwrap();
        layers.iter().find(|l| l["name"] == name).unwrap().clone()
    };
    assert_eq!(of(enough)["role"], "esm");
    assert_eq!(of(enough)["reason"], serde_json::Value::Null);
    for name in [few, none] {
        assert_eq!(of(name)["role"], "tsv_m", "{name}");
        assert!(of(name)["reason"].as_str().unwrap().starts_with("few tokens"), "{name}");
    }
    // the same directions as TSV-M's, up to the factor of the layer: alpha, and what ESM scales layers by
    let recipe = fs::read_to_string(family.path("recipe.yaml")).unwrap();
    let models = recipe.lines().filter(|l| !l.contains("calibration")).collect::<Vec<_>>().join("\n");
    family.write("recipe.yaml", models.replace("merge_method: esm", "merge_method: tsv_m") + "\n");
    let by_tsv = family.merged(&[]);
    let base = synthetic::read_tensors(&family.path("base"));
    let delta = |merged: &BTreeMap<String, Tensor>, name: &str| -> Vec<f64> {
        let pairs = merged[name].values().into_iter().zip(base[name].values());
        pairs.map(|(w, b)| f64::from(w) - f64::from(b)).collect()
    };
    for (name, alike) in [(few, true), (none, true), (enough, false)] {
        let (esm, tsv) = (delta(&by_esm, name), delta(&by_tsv, name));
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let cosine = dot(&esm, &tsv) / (dot(&esm, &esm) * dot(&tsv, &tsv)).sqrt();
        assert_eq!(cosine > 1.0 - 1e-5, alike, "{name}: cosine {cosine}");
    }
}
