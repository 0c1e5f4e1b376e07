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

/// Experts of the mixtures below, and the sizes of their hidden state and of what lies between.
const EXPERTS: usize = 3;
const HIDDEN: usize = 8;
const WIDE: usize = 12;

/// The way in and the way out of every expert, by what the file calls them: apart or in one tensor, as `d_out x d_in` or across.
fn mixture(model_type: &str, in_one: bool, across: bool, dtype: Dtype) -> Family {
    let family = Family::new();
    let at = "model.layers.0.mlp.experts";
    let model = |seed: Option<u64>| -> Tensors {
        let (mut of_base, mut of_expert) = (Numbers::new(3), Numbers::new(seed.unwrap_or(0)));
        let scale = if seed.is_some() { 0.1 } else { 0.0 };
        let mut tensors = Tensors::new();
        for (name, rows, cols) in [("gate_up_proj", 2 * WIDE, HIDDEN), ("down_proj", HIDDEN, WIDE)] {
            let mut matrix = || -> Vec<f32> {
                let values = (0..rows * cols).map(|_| of_base.next() + scale * of_expert.next());
                let values = values.collect::<Vec<f32>>();
                if across { transposed(&values, rows, cols) } else { values }
            };
            let [rows, cols] = if across { [cols, rows] } else { [rows, cols] };
            let matrices: Vec<Vec<f32>> = (0..EXPERTS).map(|_| matrix()).collect();
            if in_one {
                let tensor = Tensor::float(dtype, &[EXPERTS, rows, cols], &matrices.concat());
                tensors.insert(format!("{at}.{name}"), tensor);
                continue;
            }
            for (e, matrix) in matrices.iter().enumerate() {
                tensors
                    .insert(format!("{at}.{e}.{name}.weight"), Tensor::float(dtype, &[rows, cols], matrix));
            }
        }
        tensors.insert(
            "model.layers.0.mlp.gate.weight".to_owned(),
            Tensor::float(dtype, &[EXPERTS, HIDDEN], &of_base.take(EXPERTS * HIDDEN, 1.0)),
        );
        tensors
    };
    for (folder, seed) in [("base", None), ("experts/cars", Some(1)), ("experts/birds", Some(2))] {
        family.write_model(folder, &model(seed));
        family.write(&format!("{folder}/config.json"), format!(r#"{{"model_type": "{model_type}"}}"#));
    }
    // the last expert sees few tokens of birds
    for (expert, seed, tokens) in [("cars", 1, [20, 31, 17]), ("birds", 2, [16, 24, 7])] {
        let name = |e: usize, name: &str| match in_one {
            true => format!("{at}.{name}[{e}]"),
            false => format!("{at}.{e}.{name}.weight"),
        };
        let inputs = (0..EXPERTS).flat_map(|e| {
            [(name(e, "gate_up_proj"), tokens[e], HIDDEN), (name(e, "down_proj"), tokens[e], WIDE)]
        });
        let inputs: Vec<_> = inputs.collect();
        let inputs: Vec<_> = inputs.iter().map(|(name, n, d)| (name.as_str(), *n, *d)).collect();
        calibrate(&family, expert, seed, &inputs);
    }
    family
}

/// The values of every expert's matrices, expert by expert, whatever the file calls them.
fn of_experts(merged: &BTreeMap<String, Tensor>) -> BTreeMap<(usize, &'static str), Vec<f32>> {
    let place = |name: &str| {
        let kind = ["gate_up_proj", "down_proj"].into_iter().find(|kind| name.contains(kind))?;
        let number = |text: &str| text.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok();
        Some((number(name.split_once(".experts.")?.1)?, kind))
    };
    merged.iter().filter_map(|(name, tensor)| Some((place(name)?, tensor.values()))).collect()
}

fn merged_on(family: &Family, device: &str, more: &[&str]) -> BTreeMap<String, Tensor> {
    let _ = fs::remove_dir_all(family.path("out"));
    let output = family.esmerge(&[&["merge", "recipe.yaml", "out", "-q", "--device", device], more].concat());
    assert!(output.status.success(), "{device}: {}", String::from_utf8_lossy(&output.stderr));
    synthetic::read_tensors(&family.path("out"))
}

fn recipe(method: &str, more: &str) -> String {
    let calibrated = ["esm", "regmean"].contains(&method);
    let model = |name: &str| match calibrated {
        true => format!("  - {{model: experts/{name}, calibration: calibration/{name}.safetensors}}\n"),
        false => format!("  - {{model: experts/{name}}}\n"),
    };
    let models = ["cars", "birds"].map(model).concat();
    format!("merge_method: {method}\nbase_model: base\nmodels:\n{models}{more}")
}

#[test]
fn experts_in_one_tensor_merge_as_if_each_had_its_own() {
    let llvmpipe =
        |output: &std::process::Output| !String::from_utf8_lossy(&output.stdout).contains("llvmpipe");
    let methods = [
        ("esm", "parameters: {alpha: 0.8}\n"),
        ("tsv_m", ""),
        ("iso_c", ""),
        ("iso_cts", ""),
        ("knots_ties", "parameters: {density: 0.5}\n"),
        ("regmean", ""),
        ("linear", ""),
        ("task_arithmetic", ""),
        ("ties", "parameters: {density: 0.5}\n"),
        ("model_stock", ""),
    ];
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let [in_one, apart] = [true, false].map(|in_one| mixture("qwen3_moe", in_one, false, dtype));
        let no_llvmpipe = llvmpipe(&in_one.esmerge(&["devices"]));
        for (method, more) in methods {
            for device in ["cpu", "gpu:llvmpipe"] {
                let slow = !["esm", "tsv_m", "ties"].contains(&method) || dtype == Dtype::Bf16;
                if device != "cpu" && (no_llvmpipe || slow) {
                    continue;
                }
                let merged = [&in_one, &apart].map(|family| {
                    family.write("recipe.yaml", recipe(method, more));
                    merged_on(family, device, &[])
                });
                let [one, other] = merged.each_ref().map(of_experts);
                assert_eq!(one.len(), 2 * EXPERTS);
                assert_eq!(one, other, "{method} on {device}");
                let base = synthetic::read_tensors(&in_one.path("base"));
                assert!(of_experts(&base) != one, "{method} on {device}");
            }
        }
        // the file has the base's tensors, in their shapes and types
        let file = |folder: &str| {
            let file = esmerge::checkpoint::TensorFile::open(&in_one.path(folder).join("model.safetensors"));
            let tensors = file.unwrap().tensors().clone();
            tensors.into_iter().map(|(name, t)| (name, (t.shape, t.dtype))).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(file("base"), file("out"));
        assert_eq!(file("out")["model.layers.0.mlp.experts.down_proj"].0, [EXPERTS, HIDDEN, WIDE]);
    }
}

/// How files have a mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// All experts in one tensor, the gate above what it gates.
    InOne,
    /// A matrix an expert, gate and `up` apart.
    Apart,
    /// The same under the names that Mixtral has.
    ByNumbers,
}

/// Tensors with the experts' matrices by the names and in the parts of a layout; a calibration's too, by `.input` behind a weight.
fn laid(tensors: &BTreeMap<String, Tensor>, layout: Layout) -> Tensors {
    let name = |e: &str, names: [&str; 2]| match layout {
        Layout::ByNumbers => format!("model.layers.0.block_sparse_moe.experts.{e}.{}.weight", names[1]),
        _ => format!("model.layers.0.mlp.experts.{e}.{}.weight", names[0]),
    };
    let mut laid = Tensors::new();
    for (key, tensor) in tensors {
        let Some((kind, (e, end))) =
            key.split_once('[').and_then(|(k, rest)| Some((k, rest.split_once(']')?)))
        else {
            let old = key.replace(".mlp.", ".block_sparse_moe.");
            laid.insert(if layout == Layout::ByNumbers { old } else { key.clone() }, tensor.clone());
            continue;
        };
        if kind.ends_with("down_proj") {
            laid.insert(format!("{}{end}", name(e, ["down_proj", "w2"])), tensor.clone());
        } else if end == ".input" {
            laid.insert(format!("{}{end}", name(e, ["gate_proj", "w1"])), tensor.clone());
        } else {
            let values = tensor.values();
            for (names, half) in
                [["gate_proj", "w1"], ["up_proj", "w3"]].into_iter().zip(values.chunks(WIDE * HIDDEN))
            {
                laid.insert(name(e, names), Tensor::float(Dtype::F32, &[WIDE, HIDDEN], half));
            }
        }
    }
    laid
}

/// Writes a model of the family, and an expert's calibration, in a layout.
fn lay(family: &Family, folder: &str, layout: Layout) {
    if layout == Layout::InOne {
        return; // as it was made
    }
    let config = fs::read_to_string(family.path(&format!("{folder}/config.json"))).unwrap();
    let tensors = laid(&synthetic::read_tensors(&family.path(folder)), layout);
    fs::remove_dir_all(family.path(folder)).unwrap();
    family.write_model(folder, &tensors);
    family.write(&format!("{folder}/config.json"), config);
    let Some(expert) = folder.strip_prefix("experts/") else { return };
    let path = family.path(&format!("calibration/{expert}.safetensors"));
    let inputs = laid(&synthetic::read_tensors(&path), layout);
    fs::remove_file(&path).unwrap();
    let mut writer = Writer::create(&path, false).unwrap();
    for (key, tensor) in &inputs {
        let weight = key.strip_suffix(".input").unwrap();
        let [tokens, d_in] = tensor.shape[..] else { panic!("{key} is no matrix") };
        let up = weight.replace("gate_proj", "up_proj").replace("w1", "w3");
        let also = if up == weight { Vec::new() } else { vec![up] };
        let entry = Entry { tokens, d_in, input: Some(tensor.values()), gram: None, mean: None };
        writer.add(weight, &entry, &also).unwrap();
    }
    writer.finish(4, None).unwrap();
}

#[test]
fn experts_whose_files_have_a_mixture_otherwise_merge_as_the_base_has_it() {
    use Layout::{Apart, ByNumbers, InOne};
    let methods = [
        ("esm", "parameters: {alpha: 0.8}\n"),
        ("tsv_m", ""),
        ("task_arithmetic", ""),
        ("ties", "parameters: {density: 0.5}\n"),
    ];
    for (of_base, of_experts) in
        [(InOne, [Apart, ByNumbers]), (Apart, [InOne, ByNumbers]), (ByNumbers, [InOne, Apart])]
    {
        let [same, other] = [[of_base; 2], of_experts].map(|of_experts| {
            let family = mixture("qwen3_moe", true, false, Dtype::F32);
            lay(&family, "base", of_base);
            lay(&family, "experts/cars", of_experts[0]);
            lay(&family, "experts/birds", of_experts[1]);
            family
        });
        for (method, more) in methods {
            let merged = [&same, &other].map(|family| {
                family.write("recipe.yaml", recipe(method, more));
                family.merged(&[])
            });
            assert!(merged[0] == merged[1], "{method}: {of_experts:?} on {of_base:?}");
            let base = synthetic::read_tensors(&other.path("base"));
            assert!(merged[1].keys().eq(base.keys()), "{method}: {of_base:?}");
            assert!(merged[1] != base, "{method}");
        }
        let report = fs::read(other.path("out/esmerge-report.json")).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        let account = &report["account"]["experts"]["cars"];
        assert!(account["renamed"]["experts together or apart"].as_u64().is_some(), "{account}");
    }
}

#[test]
fn experts_of_other_sizes_than_the_bases_are_refused() {
    let family = mixture("qwen3_moe", true, false, Dtype::F32);
    let mut tensors = laid(&synthetic::read_tensors(&family.path("experts/cars")), Layout::Apart);
    let up = tensors.get_mut("model.layers.0.mlp.experts.1.up_proj.weight").unwrap();
    *up = Tensor::float(Dtype::F32, &[WIDE - 1, HIDDEN], &up.values()[HIDDEN..]);
    family.write_model("experts/cars", &tensors);
    family.write("experts/cars/config.json", r#"{"model_type": "qwen3_moe"}"#);
    family.write("recipe.yaml", recipe("task_arithmetic", ""));
    let output = family.merge(&[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("experts.gate_up_proj[1]"), "{text}");
}

#[test]
fn the_report_names_every_experts_matrix_and_what_saw_too_few_tokens() {
    let family = mixture("qwen3_moe", true, false, Dtype::F32);
    family.write("recipe.yaml", recipe("esm", "parameters: {alpha: 0.8}\n"));
    family.merged(&[]);
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
    let layers = report["layers"].as_array().unwrap();
    for (e, role) in [(0, "esm"), (1, "esm"), (2, "tsv_m")] {
        for kind in ["gate_up_proj", "down_proj"] {
            let name = format!("model.layers.0.mlp.experts.{kind}[{e}]");
            let layer = layers.iter().find(|layer| layer["name"] == name.as_str());
            let layer = layer.unwrap_or_else(|| panic!("the report lacks {name}"));
            assert_eq!(layer["role"], role, "{name}");
            let few = layer["reason"].as_str().is_some_and(|reason| reason.starts_with("few tokens"));
            assert_eq!(few, role == "tsv_m", "{name}");
        }
    }
}

#[test]
fn experts_in_one_tensor_that_are_stored_across_merge_as_if_they_were_not() {
    // their sizes say how they are stored, whatever the type of the model
    for (method, more) in
        [("esm", "parameters: {alpha: 0.8}\n"), ("regmean", "parameters: {ridge: 0.1, ridge_to: zero}\n")]
    {
        let [across, plain] = [("gpt_oss", true), ("qwen3_moe", false)].map(|(model_type, across)| {
            let family = mixture(model_type, true, across, Dtype::F32);
            let cars = "calibration/cars.safetensors";
            // nothing by TSV-M, which takes matrices as they are stored
            fs::copy(family.path(cars), family.path("calibration/birds.safetensors")).unwrap();
            family.write("recipe.yaml", recipe(method, more));
            of_experts(&family.merged(&["--accuracy", "exact"]))
        });
        for (place, values) in &plain {
            let (rows, cols) = if place.1 == "down_proj" { (HIDDEN, WIDE) } else { (2 * WIDE, HIDDEN) };
            assert_eq!(across[place], transposed(values, rows, cols), "{method} {place:?}");
        }
    }
}

#[test]
fn kept_deltas_of_experts_in_one_tensor_make_the_model_again() {
    let family = mixture("qwen3_moe", true, false, Dtype::F32);
    family.write("recipe.yaml", recipe("esm", "parameters: {alpha: 0.8}\n"));
    let merged = family.merged(&["--keep-delta", "kept.safetensors"]);
    let alpha = &serde_json::from_slice::<serde_json::Value>(
        &fs::read(family.path("out/esmerge-report.json")).unwrap(),
    )
    .unwrap()["alpha"];
    let alpha = alpha.to_string();
    let arguments =
        ["rescale", "kept.safetensors", "--base", "base", "--alpha", &alpha, "again", "--device", "cpu"];
    let output = family.esmerge(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(synthetic::read_tensors(&family.path("again")) == merged);
    // and they are an expert, whose tensors stay together in the output
    family.write(
        "recipe.yaml",
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: {delta: kept.safetensors}}]\n\
         parameters: {weight: 1.0}\n",
    );
    let added = family.merged(&[]);
    for (name, tensor) in &merged {
        for (a, b) in added[name].values().iter().zip(tensor.values()) {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{name}");
        }
    }
}
