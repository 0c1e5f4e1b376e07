//! Merges of small models through the program: files, types, shards, methods.

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::calibration::{Entry, Writer};
use esmerge::checkpoint::{Stored, TensorFile};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use synthetic::{
    FC1, FC2, Family, MLP, NORM, Numbers, POSITIONS, QUERY, RECIPE, Tensor, Tensors, WIDTH, base, expert,
    write_tensors,
};

fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        got.iter().zip(want).map(|(&g, &w)| f(g.into(), w.into())).sum()
    };
    (sum(&|g, w| (g - w).powi(2)) / sum(&|_, w| w * w).max(f64::MIN_POSITIVE)).sqrt()
}

fn assert_close(got: &BTreeMap<String, Tensor>, want: &BTreeMap<String, Tensor>, tolerance: f64) {
    assert!(got.keys().eq(want.keys()));
    for (name, tensor) in got.iter().filter(|(_, t)| t.dtype != Stored::I64) {
        let error = relative_error(&tensor.values(), &want[name].values());
        assert!(error <= tolerance, "{name}: {error:e}");
    }
}

/// Splits a model's file into two shards with an index.
fn shard(family: &Family, model: &str) {
    let tensors: Tensors = synthetic::read_tensors(&family.path(model)).into_iter().collect();
    fs::remove_file(family.path(&format!("{model}/model.safetensors"))).unwrap();
    let mut map = serde_json::Map::new();
    let (first, second): (Tensors, Tensors) =
        tensors.into_iter().enumerate().fold(Default::default(), |mut halves: (Tensors, Tensors), (i, t)| {
            if i % 3 == 0 {
                halves.0.insert(t.0, t.1)
            } else {
                halves.1.insert(t.0, t.1)
            };
            halves
        });
    for (file, half) in [("model-1-of-2.safetensors", first), ("model-2-of-2.safetensors", second)] {
        map.extend(half.keys().map(|name| (name.clone(), Value::from(file))));
        write_tensors(&family.path(&format!("{model}/{file}")), &half, &BTreeMap::new());
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    family.write(&format!("{model}/model.safetensors.index.json"), index.to_string());
}

#[test]
fn a_sharded_model_reads_as_the_single_file_does() {
    let family = Family::new();
    let single = family.merged(&[]);
    shard(&family, "base");
    shard(&family, "experts/cars");
    let sharded = family.merged(&[]);
    for (name, tensor) in &single {
        assert!(sharded[name] == *tensor, "{name}");
    }
}

#[test]
fn a_single_file_reads_as_its_folder_does() {
    let family = Family::new();
    let folder = family.merged(&[]);
    let file = RECIPE
        .replace("base_model: base", "base_model: base/model.safetensors")
        .replace("model: experts/cars", "name: cars\n    model: experts/cars/model.safetensors");
    family.write("recipe.yaml", file);
    assert!(family.merged(&[]) == folder);
    assert!(family.path("out/config.json").exists(), "its folder's files belong to it");
}

#[test]
fn a_task_vector_is_the_checkpoint_it_came_from() {
    let family = Family::new();
    let whole = family.merged(&["--accuracy", "exact"]);
    for (name, seed) in [("cars", 1), ("birds", 2)] {
        let (base, mut delta) = (base(Dtype::F32), expert(seed, Dtype::F32));
        delta.shift_remove(POSITIONS);
        for (tensor, values) in &mut delta {
            let difference: Vec<f32> =
                values.values().iter().zip(base[tensor].values()).map(|(e, b)| e - b).collect();
            *values = Tensor::float(Dtype::F32, &values.shape, &difference);
        }
        write_tensors(&family.path(&format!("{name}.delta.safetensors")), &delta, &BTreeMap::new());
    }
    let recipe = RECIPE
        .replace("model: experts/cars", "model: {delta: cars.delta.safetensors}")
        .replace("model: experts/birds", "model: base+delta:birds.delta.safetensors");
    family.write("recipe.yaml", recipe);
    assert_close(&family.merged(&["--accuracy", "exact"]), &whole, 1e-6);
}

#[test]
fn a_tensor_that_no_task_vector_has_stays_as_it_is() {
    let family = Family::new();
    for name in ["cars", "birds"] {
        let mut delta = expert(1, Dtype::F32);
        delta.retain(|tensor, _| tensor.ends_with("mlp.fc1.weight"));
        write_tensors(&family.path(&format!("{name}.safetensors")), &delta, &BTreeMap::new());
    }
    let recipe = RECIPE.replace("experts/cars", "{delta: cars.safetensors}");
    family.write("recipe.yaml", recipe.replace("experts/birds", "{delta: birds.safetensors}"));
    let merged = family.merged(&[]);
    for (name, tensor) in base(Dtype::F32) {
        assert_eq!(merged[&name] == tensor, !name.ends_with("mlp.fc1.weight"), "{name}");
    }
}

#[test]
fn types_may_differ_between_models_and_the_output_has_the_bases() {
    let family = Family::new();
    let exact = family.merged(&["--accuracy", "exact"]);
    family.write_model("base", &base(Dtype::F16));
    family.write_model("experts/cars", &expert(1, Dtype::Bf16));
    let mixed = family.merged(&["--accuracy", "exact"]);
    assert!(mixed.values().all(|t| t.dtype == Stored::F16 || t.dtype == Stored::I64));
    let error = relative_error(&mixed[NORM].values(), &exact[NORM].values());
    assert!(error > 0.0 && error < 1e-2, "{error}");
}

#[test]
fn the_output_type_is_rounded_to_once_and_told_in_the_config() {
    let family = Family::new();
    let float32 = family.merged(&[]);
    family.write("recipe.yaml", format!("{RECIPE}out_dtype: bfloat16\n"));
    let bfloat16 = family.merged(&[]);
    for (name, tensor) in &bfloat16 {
        match name.as_str() {
            POSITIONS => assert_eq!(*tensor, float32[name]),
            _ => assert_eq!(
                *tensor,
                Tensor::float(Dtype::Bf16, &tensor.shape, &float32[name].values()),
                "{name}"
            ),
        }
    }
    let config: Value = serde_json::from_slice(&fs::read(family.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(config, json!({ "model_type": "clip_vision_model", "torch_dtype": "bfloat16" }));
}

#[test]
fn integers_are_the_bases() {
    let family = Family::new();
    let mut other = expert(1, Dtype::F32);
    other.insert(POSITIONS.into(), Tensor::integers(&[9, 9, 9]));
    family.write_model("experts/cars", &other);
    assert_eq!(family.merged(&[])[POSITIONS], base(Dtype::F32)[POSITIONS]);
}

#[test]
fn linear_is_the_weighted_average() {
    let family = Family::new();
    family.write(
        "recipe.yaml",
        "merge_method: linear\nbase_model: base\nmodels:\n  - {model: experts/cars, weight: 3}\n  - {model: experts/birds}\n",
    );
    let merged = family.merged(&[]);
    let (cars, birds) = (expert(1, Dtype::F32), expert(2, Dtype::F32));
    for name in [FC1, NORM, QUERY] {
        let mean: Vec<f32> =
            cars[name].values().iter().zip(birds[name].values()).map(|(c, b)| 0.75 * c + 0.25 * b).collect();
        assert!(relative_error(&merged[name].values(), &mean) < 1e-6, "{name}");
    }
    // without dividing by the sum of the weights, and without a base: mergekit's sum of the weights themselves
    family.write(
        "recipe.yaml",
        "merge_method: linear\nmodels:\n  - {model: experts/cars, weight: 3}\n  - {model: experts/birds}\n\
         parameters: {normalize: false}\n",
    );
    let merged = family.merged(&[]);
    let sum: Vec<f32> =
        cars[FC1].values().iter().zip(birds[FC1].values()).map(|(c, b)| 3.0 * c + b).collect();
    assert!(relative_error(&merged[FC1].values(), &sum) < 1e-6);
}

#[test]
fn task_arithmetic_adds_the_deltas() {
    let family = Family::new();
    family.write(
        "recipe.yaml",
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: experts/cars}, {model: experts/birds}]\n\
         parameters: {lambda: 0.4}\n",
    );
    let merged = family.merged(&[]);
    let (base, cars, birds) = (base(Dtype::F32), expert(1, Dtype::F32), expert(2, Dtype::F32));
    let (b, c, d) = (base[FC2].values(), cars[FC2].values(), birds[FC2].values());
    let sum: Vec<f32> = (0..b.len()).map(|i| b[i] + 0.4 * (c[i] - b[i]) + 0.4 * (d[i] - b[i])).collect();
    assert!(relative_error(&merged[FC2].values(), &sum) < 1e-6);
}

#[test]
fn tsv_m_takes_the_matrices_and_averages_the_rest() {
    let family = Family::new();
    family.write(
        "recipe.yaml",
        "merge_method: tsv_m\nbase_model: base\nmodels: [{model: experts/cars}, {model: experts/birds}]\n",
    );
    let plan = plan(&family);
    assert_eq!(plan[FC1].0, "tsv_m");
    assert_eq!(plan[NORM].0, "average");
    assert_eq!(plan[POSITIONS].0, "base");
    assert_ne!(family.merged(&[])[FC1], base(Dtype::F32)[FC1]);
}

/// Tensor -> role and group, of a dry run.
fn plan(family: &Family) -> BTreeMap<String, (String, Value)> {
    let output = family.esmerge(&["merge", "recipe.yaml", "--dry-run", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut found = BTreeMap::new();
    for layer in plan["layers"].as_array().unwrap() {
        for tensor in layer["tensors"].as_array().unwrap() {
            let role = layer["role"].as_str().unwrap().to_owned();
            found.insert(tensor.as_str().unwrap().to_owned(), (role, layer["group"].clone()));
        }
    }
    found
}

#[test]
fn a_dry_run_speaks_as_the_report_does() {
    let family = Family::new();
    let output = family.esmerge(&["merge", "recipe.yaml", "--dry-run", "--json"]);
    let planned: Value = serde_json::from_slice(&output.stdout).unwrap();
    family.merged(&[]);
    let report: Value =
        serde_json::from_slice(&std::fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
    for key in ["esmerge", "merge_method", "base_model", "models", "alpha"] {
        assert_eq!(planned[key], report[key], "{key}");
    }
    let (planned, report) = (planned["layers"].as_array().unwrap(), report["layers"].as_array().unwrap());
    assert_eq!(planned.len(), report.len());
    for (planned, report) in planned.iter().zip(report) {
        for key in ["name", "tensors", "role", "reason", "scaled_by_alpha", "rank"] {
            assert_eq!(planned.get(key), report.get(key), "{key} of {}", planned["name"]);
        }
        assert_eq!(planned.get("shape").is_some(), report.get("norm").is_some(), "{}", planned["name"]);
    }
}

#[test]
fn a_layer_whose_changes_vanish_on_its_calibration_is_named() {
    let family = Family::new();
    let unwarned = family.merge(&[]);
    assert!(!String::from_utf8_lossy(&unwarned.stderr).contains("is zero"));
    for file in ["calibration/cars.safetensors", "calibration/birds.safetensors"] {
        let mut bytes = std::fs::read(family.path(file)).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].fill(0);
        family.write(file, bytes);
    }
    let _ = std::fs::remove_dir_all(family.path("out"));
    let output = family.esmerge(&["merge", "recipe.yaml", "out", "--device", "cpu"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && text.contains("qkv_proj.weight` and 5 more") && text.contains("is zero"),
        "{text}"
    );
    let report: Value =
        serde_json::from_slice(&std::fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
    assert!(report["warnings"].to_string().contains("is zero"));
}

#[test]
fn what_leaves_float32_is_said_with_the_layer_and_the_key_or_file() {
    let family = Family::new();
    let refused = |words: &[&str]| {
        let output = family.merge(&[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in: {text}"));
        assert!(!family.path("out").exists());
    };
    family.write("recipe.yaml", format!("{RECIPE}  eigen_weight_power: 60\n"));
    refused(&[".weight`", "`eigen_weight_power` is 6e1"]);
    family.write("recipe.yaml", format!("{RECIPE}  alpha_scope: all\n"));
    let mut far = expert(1, Dtype::F32);
    let shape = far[FC1].shape.clone();
    let values = vec![3e38; shape.iter().product()];
    far.insert(FC1.to_owned(), Tensor::float(Dtype::F32, &shape, &values));
    family.write_model("experts/cars", &far);
    refused(&[FC1, "expert `cars`", "look at that file"]);
}

#[test]
fn q_k_and_v_of_a_vision_transformer_are_one_matrix() {
    let family = Family::new();
    let roles = plan(&family);
    let group = "vision_model.encoder.layers.*.self_attn.qkv_proj.weight";
    for weight in ["q_proj", "k_proj", "v_proj"] {
        let name = QUERY.replace("q_proj", weight);
        assert_eq!(roles[&name], ("esm".to_owned(), json!(group)));
    }
    let out = QUERY.replace("q_proj", "out_proj");
    assert_eq!(roles[&out].0, "tsv_m");
    assert_eq!(roles["visual_projection.weight"].0, "tsv_m");
    assert_eq!(roles["vision_model.embeddings.patch_embedding.weight"].0, "average");

    // three equal stacks differ from three matrices of their own
    let fused = family.merged(&[]);
    family.write("recipe.yaml", format!("{RECIPE}  fuse_qkv: false\n"));
    assert_eq!(plan(&family)[QUERY].1, json!(QUERY.replace(".0.", ".*.")));
    assert_ne!(family.merged(&[])[QUERY], fused[QUERY]);
}

#[test]
fn the_paper_preset_takes_fewer_layers() {
    let family = Family::new();
    family.write("recipe.yaml", format!("{RECIPE}  preset: esm-paper\n"));
    let roles = plan(&family);
    assert_eq!((roles[FC1].0.as_str(), roles[FC2].0.as_str()), ("esm", "average"));
    assert_eq!(roles["visual_projection.weight"].0, "average");
}

#[test]
fn layers_name_esms_tensors() {
    let family = Family::new();
    family.write("recipe.yaml", format!("{RECIPE}  layers: ['*.1.mlp.*']\n"));
    let roles = plan(&family);
    assert_eq!(roles[FC2].0, "esm");
    assert_eq!(roles[FC1].0, "tsv_m");
    assert_eq!(roles[QUERY].0, "tsv_m");
}

#[test]
fn an_unknown_architecture_gets_esm_on_every_matrix_of_a_block_with_a_warning() {
    let family = Family::new();
    for model in ["base", "experts/cars", "experts/birds"] {
        family.write(&format!("{model}/config.json"), r#"{"model_type": "brand_new"}"#);
    }
    let output = family.esmerge(&["merge", "recipe.yaml", "--dry-run", "--json"]);
    // out_proj is ESM's now, and nobody calibrated it
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && stderr.contains("out_proj.weight"), "{stderr}");
    family.write(
        "recipe.yaml",
        RECIPE
            .replace("calibration/cars.safetensors", "none")
            .replace("calibration/birds.safetensors", "none"),
    );
    let output = family.esmerge(&["merge", "recipe.yaml", "--dry-run"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("`brand_new`"), "{stderr}");
    let roles = plan(&family);
    assert_eq!(roles[&QUERY.replace("q_proj", "out_proj")].0, "esm");
    assert_eq!(roles[QUERY].1, json!(QUERY.replace(".0.", ".*.")), "not fused");
}

#[test]
fn alpha_multiplies_what_its_scope_says() {
    let family = Family::new();
    let half = family.merged(&[]);
    let one = family.merged(&["--alpha", "1"]);
    assert_ne!(half[FC1], one[FC1]);
    assert_eq!(half[NORM], one[NORM], "averages enter with coefficient 1");
    family.write("recipe.yaml", format!("{RECIPE}  alpha_scope: all\n"));
    let all = family.merged(&[]);
    assert_ne!(all[NORM], half[NORM]);
    let base = base(Dtype::F32)[NORM].values();
    let expected: Vec<f32> =
        base.iter().zip(one[NORM].values()).map(|(b, average)| b + 0.5 * (average - b)).collect();
    assert!(relative_error(&all[NORM].values(), &expected) < 1e-6);
}

#[test]
fn kept_deltas_make_the_same_model_again_and_any_other_alpha() {
    let family = Family::new();
    let half = family.merged(&["--keep-delta", "delta.safetensors"]);
    assert!(family.merged(&[]) == half, "keeping the deltas changes nothing");
    let one = family.merged(&["--alpha", "1"]);
    for (alpha, expected) in [("0.5", half), ("1", one)] {
        let _ = fs::remove_dir_all(family.path("again"));
        let rescale = ["rescale", "delta.safetensors", "--base", "base", "--alpha", alpha, "again", "-q"];
        let output = family.esmerge(&[&rescale[..], &["--device", "cpu"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(synthetic::read_tensors(&family.path("again")) == expected, "alpha {alpha}");
    }
    let file = TensorFile::open(&family.path("delta.safetensors")).unwrap();
    assert_eq!(file.metadata()["format"], "esmerge-delta-1");
    assert!(file.tensors().values().all(|t| t.dtype == Stored::F32));
}

#[test]
fn the_same_merge_gives_the_same_bytes_whatever_the_shards() {
    let family = Family::new();
    let single = family.merged(&["--seed", "5"]);
    let first = files(&family);
    assert_eq!(family.merged(&["--seed", "5"]), single);
    assert_eq!(files(&family), first, "every file, the report included");
    for size in ["1", "700", "2KB"] {
        let sharded = family.merged(&["--seed", "5", "--out-shard-size", size]);
        assert!(sharded == single, "{size}");
        assert!(family.path("out/model.safetensors.index.json").exists());
        assert!(!family.path("out/model.safetensors").exists());
    }
}

fn files(family: &Family) -> BTreeMap<String, Vec<u8>> {
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    fs::read_dir(family.path("out")).unwrap().map(file).collect()
}

#[test]
fn the_output_is_a_model_folder() {
    let family = Family::new();
    family.write("base/tokenizer.json", "{}");
    family.write("base/merges.txt", "a b");
    family.write("base/training_args.bin", "pickle");
    fs::create_dir(family.path("base/1_Pooling")).unwrap();
    family.write("base/1_Pooling/config.json", "{}");
    family.merged(&[]);
    let mut names: Vec<String> = files_below(&family);
    names.sort();
    assert_eq!(
        names,
        [
            "1_Pooling",
            "1_Pooling/config.json",
            "README.md",
            "config.json",
            "esmerge-report.json",
            "merges.txt",
            "model.safetensors",
            "recipe.yaml",
            "scales.svg",
            "tokenizer.json"
        ]
    );
    assert!(fs::read_to_string(family.path("out/recipe.yaml")).unwrap().ends_with(RECIPE));
    let report: Value =
        serde_json::from_slice(&fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
    assert_eq!(report["models"], json!(["cars", "birds"]));
    let layers = report["layers"].as_array().unwrap();
    let named: usize = layers.iter().map(|l| l["tensors"].as_array().unwrap().len()).sum();
    assert_eq!(named, base(Dtype::F32).len(), "every tensor is accounted for");
}

fn files_below(family: &Family) -> Vec<String> {
    let out = family.path("out");
    let all = family.files();
    all.iter()
        .filter_map(|p| Some(p.strip_prefix(&out).ok()?.to_str()?.to_owned()))
        .filter(|p| !p.is_empty())
        .collect()
}

#[test]
fn an_empty_output_folder_is_filled() {
    let family = Family::new();
    fs::create_dir(family.path("out")).unwrap();
    let output = family.merge(&[]);
    assert!(output.status.success());
    assert!(family.path("out/model.safetensors").exists());
    let output = family.esmerge(&["merge", "recipe.yaml", "new/deep/out", "-q", "--device", "cpu"]);
    assert!(output.status.success());
    assert!(family.path("new/deep/out/model.safetensors").exists());
}

#[test]
fn coarse_expert_files_are_warned_about() {
    let family = Family::new();
    family.write_model("experts/cars", &expert(1, Dtype::Bf16));
    let output = family.esmerge(&["merge", "recipe.yaml", "out", "--device", "cpu", "--json"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let warnings: Vec<&str> = stderr.lines().filter(|line| line.contains("16-bit")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("cars by about"), "{stderr}");
    assert!(!warnings[0].contains("birds"), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    // weights of up to 1, moved by up to 0.1, in 8 bits
    let damage = report["rounding"]["cars"].as_f64().unwrap();
    assert!(damage > 0.01 && damage < 0.05, "{damage}");
    assert!(report["seconds"].as_f64().is_some());
}

#[test]
fn rounding_counts_only_values_that_fine_tuning_changed_and_is_no_matter_for_sums() {
    let family = Family::new();
    let base = base(Dtype::Bf16);
    family.write_model("base", &base);
    // one matrix is trained, far beyond its rounding; all others are the base's
    let mut tuned = base.clone();
    let values: Vec<f32> = base[FC1].values().iter().map(|v| v + 0.5).collect();
    tuned.insert(FC1.to_owned(), Tensor::float(Dtype::Bf16, &base[FC1].shape, &values));
    family.write_model("experts/cars", &tuned);
    family.write_model("experts/birds", &expert(2, Dtype::Bf16));
    let recipe = "merge_method: linear\nbase_model: base\nmodels:\n  - model: experts/cars\n  - model: experts/birds\n";
    family.write("recipe.yaml", recipe);
    let output = family.esmerge(&["merge", "recipe.yaml", "out", "--device", "cpu", "--json"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("16-bit"), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    // the values are rounded from v + 0.5, |v| <= 1, to 8 bits
    let damage = report["rounding"]["cars"].as_f64().unwrap();
    let ulp = |v: f32| 2f64.powi(f64::from(v.abs()).log2().floor() as i32 - 7);
    let expected =
        (values.iter().map(|v| ulp(*v).powi(2)).sum::<f64>() / 12.0 / (0.25 * values.len() as f64)).sqrt();
    assert!((damage / expected - 1.0).abs() < 0.1, "{damage} {expected}");
}

#[test]
fn a_fingerprint_that_fits_is_accepted_without_a_warning() {
    let family = Family::new();
    for (name, seed, tokens) in [("cars", 1, 20), ("birds", 2, 12)] {
        let model = esmerge::checkpoint::Checkpoint::open(&family.path(&format!("experts/{name}"))).unwrap();
        let covered = |n: &&str| {
            n.contains("layers") && n.ends_with("weight") && !n.contains("out_") && !n.contains("norm")
        };
        let weights: Vec<String> = model.names().filter(covered).map(str::to_owned).collect();
        let print = esmerge::checkpoint::fingerprint(&model, weights.iter().map(String::as_str)).unwrap();
        family.calibrate(name, seed, tokens, Some(&print));
    }
    let output = family.esmerge(&["merge", "recipe.yaml", "out", "--device", "cpu"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(!stderr.contains("fingerprint"), "{stderr}");
}

#[test]
fn grams_stand_in_for_tokens() {
    let family = Family::new();
    let tokens = family.merged(&["--accuracy", "exact"]);
    // one expert's tokens as Gram matrices: all are taken as Grams then
    let path = family.path("calibration/cars.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let mut grams = Tensors::new();
    for (name, tensor) in synthetic::read_tensors(&path) {
        let (n, d) = (tensor.shape[0], tensor.shape[1]);
        let x = tensor.values();
        let dot = |i: usize, j: usize| -> f64 {
            (0..n).map(|t| f64::from(x[t * d + i]) * f64::from(x[t * d + j])).sum()
        };
        let gram: Vec<f32> = (0..d * d).map(|k| dot(k / d, k % d) as f32).collect();
        grams.insert(name.replace(".input", ".gram"), Tensor::float(Dtype::F32, &[d, d], &gram));
    }
    let metadata = file.metadata().clone();
    write_tensors(&path, &grams, &metadata);
    assert_close(&family.merged(&["--accuracy", "exact"]), &tokens, 1e-5);
}

#[test]
fn a_layer_merges_in_a_batch_as_it_would_alone() {
    // the MLPs of both blocks have one shape; the second saw fewer tokens, and one of its inputs is known as a Gram matrix
    let family = Family::new();
    for (expert, seed) in [("cars", 5), ("birds", 6)] {
        let mut numbers = Numbers::new(seed);
        let mut writer =
            Writer::create(&family.path(&format!("calibration/{expert}.safetensors")), false).unwrap();
        for (block, tokens) in [(0, 30), (1, 17)] {
            for (weight, d_in) in [("fc1", WIDTH), ("fc2", MLP)] {
                let x = numbers.take(tokens * d_in, 1.0);
                let of_gram = block == 1 && weight == "fc2" && expert == "cars";
                let dot =
                    |k: usize| (0..tokens).map(|t| x[t * d_in + k / d_in] * x[t * d_in + k % d_in]).sum();
                let gram = of_gram.then(|| (0..d_in * d_in).map(dot).collect());
                let input = (!of_gram).then_some(x.clone());
                let name = format!("vision_model.encoder.layers.{block}.mlp.{weight}.weight");
                let entry = Entry { tokens, d_in, input, gram, mean: None };
                writer.add(&name, &entry, &[]).unwrap();
            }
        }
        writer.finish(4, None).unwrap();
    }
    let merged = |layers: &str| {
        let recipe = format!("{RECIPE}  inter_layer: off\n  accuracy: exact\n  layers: ['{layers}']\n");
        family.write("recipe.yaml", recipe);
        family.merged(&[])
    };
    let both = merged("*.mlp.*");
    for block in 0..2 {
        let alone = merged(&format!("*.{block}.mlp.*"));
        for weight in ["fc1", "fc2"] {
            let name = format!("vision_model.encoder.layers.{block}.mlp.{weight}.weight");
            let error = relative_error(&both[&name].values(), &alone[&name].values());
            assert!(error < 1e-6, "{name}: {error:e}");
            // alone, the other block is merged by TSV-M
            let other = name.replace(&format!(".{block}."), &format!(".{}.", 1 - block));
            assert!(relative_error(&both[&other].values(), &alone[&other].values()) > 1e-3);
        }
    }
}

#[test]
fn where_there_is_no_such_gpu_the_cpu_goes_on_if_that_was_asked_and_the_report_says_so() {
    let family = Family::new();
    let merge = |more: &[&str]| {
        family.esmerge(&[&["merge", "recipe.yaml", "out", "-q", "--device", "gpu:none such"], more].concat())
    };
    assert!(!merge(&[]).status.success());
    let output = merge(&["--fallback", "cpu"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = std::fs::read_to_string(family.path("out/esmerge-report.json")).unwrap();
    assert!(report.contains("no GPU matches") && report.contains("--fallback cpu"), "{report}");
}
