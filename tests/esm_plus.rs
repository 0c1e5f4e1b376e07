//! ESM++ through the program: experts as adapters, the router's prototypes, and what is refused.

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::checkpoint::{RouterFile, Stored, TensorFile, lora_keys};
use esmerge::plan::{Family as Models, plan};
use esmerge::recipe::{Overrides, Recipe};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use synthetic::{FC1, FC2, Family, MLP, QUERY, RECIPE, Tensor, Tensors, WIDTH, base, expert, read_tensors};

/// The ESM recipe with experts, and with these lines under `parameters`.
fn recipe(parameters: &str) -> String {
    let indented: String = parameters.lines().map(|line| format!("  {line}\n")).collect();
    format!("{}{indented}", RECIPE.replace("merge_method: esm", "merge_method: esm++"))
}

fn family(parameters: &str) -> Family {
    let family = Family::new();
    family.write("recipe.yaml", recipe(parameters));
    family
}

/// A row-major matrix in f64.
#[derive(Clone)]
struct Matrix {
    cols: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn of(tensor: &Tensor) -> Matrix {
        Matrix { cols: tensor.shape[1], values: tensor.values().iter().map(|&v| v.into()).collect() }
    }

    fn rows(&self) -> usize {
        self.values.len() / self.cols
    }

    fn times(&self, other: &Matrix) -> Matrix {
        assert_eq!(self.cols, other.rows());
        let at = |i: usize, j: usize| {
            (0..self.cols).map(|k| self.values[i * self.cols + k] * other.values[k * other.cols + j]).sum()
        };
        let n = other.cols;
        Matrix { cols: n, values: (0..self.rows() * n).map(|k| at(k / n, k % n)).collect() }
    }

    fn transposed(&self) -> Matrix {
        let (m, n) = (self.rows(), self.cols);
        Matrix { cols: m, values: (0..m * n).map(|k| self.values[(k % m) * n + k / m]).collect() }
    }

    fn plus(&self, other: &Matrix) -> Matrix {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| a + b).collect();
        Matrix { cols: self.cols, values }
    }

    /// `||self - other|| / ||other||`
    fn distance(&self, other: &Matrix) -> f64 {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        norm(&mut self.values.iter().zip(&other.values).map(|(a, b)| a - b))
            / norm(&mut other.values.iter().copied())
    }
}

/// `A` and `B` of a weight in an adapter.
fn factors(adapter: &BTreeMap<String, Tensor>, weight: &str) -> [Matrix; 2] {
    lora_keys(weight).map(|key| Matrix::of(&adapter[&key]))
}

fn adapter(family: &Family, task: &str) -> BTreeMap<String, Tensor> {
    let path = family.path(&format!("out/adapters/{task}/adapter_model.safetensors"));
    read_tensors(&path)
}

fn adapter_config(family: &Family, task: &str) -> Value {
    let path = family.path(&format!("out/adapters/{task}/adapter_config.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Weights of block 0 with their width, and where their calibration is.
fn routed() -> Vec<(String, String)> {
    let of = |name: &str| QUERY.replace("q_proj", name);
    vec![
        (QUERY.to_owned(), QUERY.to_owned()),
        (of("k_proj"), QUERY.to_owned()),
        (of("v_proj"), QUERY.to_owned()),
        (FC1.to_owned(), FC1.to_owned()),
    ]
}

/// All files below a folder, by relative path.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match path.is_dir() {
            true => found.extend(contents(&path).into_iter().map(|(k, v)| (format!("{name}/{k}"), v))),
            false => drop(found.insert(name, fs::read(&path).unwrap())),
        }
    }
    found
}

#[test]
fn with_full_rank_the_experts_reproduce_their_outputs_on_the_proxies() {
    let all = [
        ("", "float32"),
        ("", "bfloat16"),
        ("residual_base: pretrained", "float32"),
        ("residual_base: pretrained", "float16"),
    ];
    for (parameters, dtype) in all {
        let family = family(&format!("rank: {}\n{parameters}", 3 * WIDTH));
        let text = fs::read_to_string(family.path("recipe.yaml")).unwrap();
        family.write("recipe.yaml", format!("{text}out_dtype: {dtype}\n"));
        let merged = family.merged(&[]);
        for (task, seed) in [("cars", 1), ("birds", 2)] {
            let (adapter, expert) = (adapter(&family, task), expert(seed, Dtype::F32));
            let inputs = read_tensors(&family.path(&format!("calibration/{task}.safetensors")));
            for (weight, source) in routed() {
                let [a, b] = factors(&adapter, &weight);
                let x = Matrix::of(&inputs[&format!("{source}.input")]);
                let served = Matrix::of(&merged[&weight]).plus(&b.times(&a));
                let got = x.times(&served.transposed());
                let want = x.times(&Matrix::of(&expert[&weight]).transposed());
                let error = got.distance(&want);
                assert!(error < 1e-5, "{parameters} {dtype} {task} {weight}: {error:e}");
            }
        }
    }
}

#[test]
fn a_rank_cuts_the_best_part_of_the_residual() {
    let mut errors = Vec::new();
    for rank in [1, 2, 4, 8] {
        let family = family(&format!("rank: {rank}"));
        let merged = family.merged(&[]);
        let adapter = adapter(&family, "cars");
        assert_eq!(adapter[&lora_keys(FC1)[0]].shape, [rank, WIDTH]);
        assert_eq!(adapter[&lora_keys(FC1)[1]].shape, [MLP, rank]);
        assert_eq!(adapter_config(&family, "cars")["r"], rank);
        let [a, b] = factors(&adapter, FC1);
        let identity = b.transposed().times(&b);
        for i in 0..rank * rank {
            let want = f64::from(i / rank == i % rank);
            assert!((identity.values[i] - want).abs() < 1e-5, "orthonormal columns");
        }
        let inputs = read_tensors(&family.path("calibration/cars.safetensors"));
        let x = Matrix::of(&inputs[&format!("{FC1}.input")]);
        let served = Matrix::of(&merged[FC1]).plus(&b.times(&a));
        let want = Matrix::of(&expert(1, Dtype::F32)[FC1]);
        errors.push(x.times(&served.transposed()).distance(&x.times(&want.transposed())));
    }
    assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "{errors:?}");
}

#[test]
fn q_k_and_v_are_one_residual_split_by_rows() {
    let family = family("rank: 4");
    family.merged(&[]);
    let adapter = adapter(&family, "birds");
    let key = |weight: &str| lora_keys(&QUERY.replace("q_proj", weight));
    let a = |weight: &str| adapter[&key(weight)[0]].clone();
    assert_eq!(a("q_proj"), a("k_proj"));
    assert_eq!(a("q_proj"), a("v_proj"));
    assert!(["q_proj", "k_proj", "v_proj"].iter().all(|w| adapter[&key(w)[1]].shape == [WIDTH, 4]));
    // one orthonormal basis of the stack
    let b: Vec<Matrix> = ["q_proj", "k_proj", "v_proj"].map(|w| Matrix::of(&adapter[&key(w)[1]])).into();
    let gram = b.iter().map(|b| b.transposed().times(b)).reduce(|sum, g| sum.plus(&g)).unwrap();
    assert!((gram.values[0] - 1.0).abs() < 1e-5 && gram.values[1].abs() < 1e-5);
    assert_eq!(adapter.len(), 2 * 2 * 4, "two blocks of q, k, v and fc1");
}

#[test]
fn the_model_is_the_one_that_esm_makes() {
    let family = Family::new();
    let esm = family.merged(&[]);
    family.write("recipe.yaml", recipe(""));
    assert!(family.merged(&[]) == esm);
    family.write("recipe.yaml", recipe("residual_base: pretrained"));
    let pretrained = family.merged(&[]);
    let (base, routed) = (base(Dtype::F32), routed());
    for (name, tensor) in &pretrained {
        let keeps = name.contains("mlp.fc1.weight") || routed.iter().any(|(w, _)| name.ends_with(&w[30..]));
        assert_eq!(*tensor == base[name], keeps || tensor.dtype == Stored::I64, "{name}");
        assert_eq!(*tensor == esm[name], !keeps, "{name}");
    }
}

#[test]
fn the_router_holds_the_mean_inputs_of_every_expert() {
    let family = family("");
    family.merged(&[]);
    let router = RouterFile::open(&family.path("out")).unwrap();
    assert_eq!(router.meta().tasks, ["cars", "birds"]);
    assert_eq!((router.meta().rank, router.meta().residual_base.as_str()), (8, "esm"));
    assert_eq!(router.weights().count(), 4, "two blocks of qkv and fc1");
    assert_eq!(router.meta().stacks.len(), 2);
    for (weight, source) in routed() {
        assert_eq!(router.prototypes_of(&weight), Some(source.as_str()));
    }
    assert_eq!(router.prototypes_of(FC2), None);
    let prototypes = router.read(FC1).unwrap();
    for (t, task) in ["cars", "birds"].into_iter().enumerate() {
        let inputs = read_tensors(&family.path(&format!("calibration/{task}.safetensors")));
        let x = Matrix::of(&inputs[&format!("{FC1}.input")]);
        for j in 0..WIDTH {
            let mean = (0..x.rows()).map(|i| x.values[i * WIDTH + j]).sum::<f64>() / x.rows() as f64;
            assert!((f64::from(prototypes[t * WIDTH + j]) - mean).abs() < 1e-6);
        }
    }
}

#[test]
fn a_stored_mean_comes_before_the_tokens() {
    let family = family("");
    family.merged(&[]);
    let before = RouterFile::open(&family.path("out")).unwrap().read(FC1).unwrap();
    let path = family.path("calibration/cars.safetensors");
    let metadata = TensorFile::open(&path).unwrap().metadata().clone();
    let mut tensors: Tensors = read_tensors(&path).into_iter().collect();
    tensors.insert(format!("{FC1}.mean"), Tensor::float(Dtype::F32, &[WIDTH], &[3.0; WIDTH]));
    synthetic::write_tensors(&path, &tensors, &metadata);
    family.merged(&[]);
    let after = RouterFile::open(&family.path("out")).unwrap().read(FC1).unwrap();
    assert_eq!(after[..WIDTH], [3.0; WIDTH]);
    assert_eq!(after[WIDTH..], before[WIDTH..]);
}

#[test]
fn adapters_say_what_peft_needs_to_know() {
    let family = family("rank: 4");
    family.merged(&[]);
    let config = adapter_config(&family, "cars");
    let expected = json!({
        "peft_type": "LORA", "task_type": null, "r": 4, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": false, "inference_mode": true,
        "base_model_name_or_path": family.path("out").canonicalize().unwrap(), // wherever the adapter is loaded from
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(config[key], *value, "{key}");
    }
    let mut targets: Vec<&str> =
        config["target_modules"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    targets.sort_unstable();
    assert_eq!(targets, ["fc1", "k_proj", "q_proj", "v_proj"], "no other matrix has these names");
    // some layers of a kind only: their whole paths
    family.write("recipe.yaml", recipe("routed_layers: ['*layers.1.mlp.fc1.weight']"));
    family.merged(&[]);
    let config = adapter_config(&family, "cars");
    assert_eq!(config["target_modules"], json!(["vision_model.encoder.layers.1.mlp.fc1"]));
}

#[test]
fn a_layer_smaller_than_the_rank_has_a_smaller_one() {
    let family = family("rank: 64\nrouted_layers: ['*.fc1.weight', '*.fc2.weight', '*.0.self_attn.*']");
    // out_proj's inputs are q's here
    for task in ["cars", "birds"] {
        let path = family.path(&format!("calibration/{task}.safetensors"));
        let mut metadata = TensorFile::open(&path).unwrap().metadata().clone();
        let mut alias: BTreeMap<String, String> = serde_json::from_str(&metadata["alias"]).unwrap();
        alias.insert(QUERY.replace("q_proj", "out_proj"), QUERY.to_owned());
        metadata.insert("alias".into(), serde_json::to_string(&alias).unwrap());
        let tensors: Tensors = read_tensors(&path).into_iter().collect();
        synthetic::write_tensors(&path, &tensors, &metadata);
    }
    family.merged(&[]);
    let adapter = adapter(&family, "cars");
    assert_eq!(adapter[&lora_keys(FC2)[0]].shape, [WIDTH, MLP]);
    assert_eq!(adapter_config(&family, "cars")["r"], WIDTH, "the largest there is");
    assert_eq!(adapter_config(&family, "cars")["rank_pattern"], json!({}));
    // q, k and v as one, out_proj by itself, routed by the same prototypes
    let router = RouterFile::open(&family.path("out")).unwrap();
    assert_eq!(router.prototypes_of(&QUERY.replace("q_proj", "out_proj")), Some(QUERY));
    assert_eq!(router.meta().stacks.len(), 1);
}

#[test]
fn the_report_and_the_card_state_the_costs() {
    let family = family("rank: 4");
    family.merged(&[]);
    let report: Value =
        serde_json::from_slice(&fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
    assert_eq!(report["merge_method"], "esm++");
    let experts = &report["experts"];
    let parameters = 2 * 4 * ((3 * WIDTH + WIDTH) + (MLP + WIDTH));
    assert_eq!(experts["parameters_per_task"], parameters);
    assert_eq!(experts["flops_per_token"], 2 * parameters);
    assert_eq!(experts["routing_values"], 2 * 2 * 2 * WIDTH);
    let kept = experts["layers"][0]["energy_restored"]["cars"].as_f64().unwrap();
    assert!(kept > 0.0 && kept <= 1.0);
    let card = fs::read_to_string(family.path("out/README.md")).unwrap();
    for words in ["esm++", "adapters/<task>", "PeftModel", &parameters.to_string()] {
        assert!(card.contains(words), "{words}");
    }
}

#[test]
fn the_same_merge_gives_the_same_bytes_whatever_the_folder_and_the_shards() {
    let family = family("");
    family.merged(&[]);
    // the path of the model is all of its folder that an adapter knows
    let contents = |folder: &std::path::Path| {
        let mut contents = contents(folder);
        let own = json!(folder.canonicalize().unwrap()).to_string();
        for name in ["cars", "birds"] {
            let config = contents.get_mut(&format!("adapters/{name}/adapter_config.json")).unwrap();
            let text = String::from_utf8(std::mem::take(config)).unwrap();
            assert_eq!(text.matches(&own).count(), 1, "{text}");
            *config = text.replace(&own, "MODEL").into_bytes();
        }
        contents
    };
    let first = contents(&family.path("out"));
    assert!(first.contains_key("adapters/birds/adapter_model.safetensors"));
    let output = family.esmerge(&["merge", "recipe.yaml", "elsewhere/other", "-q", "--device", "cpu"]);
    assert!(output.status.success());
    assert!(contents(&family.path("elsewhere/other")) == first);
    family.merged(&["--out-shard-size", "700"]);
    let sharded = contents(&family.path("out"));
    for (name, bytes) in first.iter().filter(|(name, _)| !name.starts_with("model")) {
        assert!(sharded[name] == *bytes, "{name}");
    }
}

#[test]
fn even_one_weights_file_has_an_index_that_leaves_the_router_out() {
    let family = family("");
    family.merged(&[]);
    let index = fs::read(family.path("out/model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let files: Vec<&Value> = index["weight_map"].as_object().unwrap().values().collect();
    assert_eq!(files.len(), base(Dtype::F32).len());
    assert!(files.iter().all(|file| *file == "model.safetensors"));
}

#[test]
fn an_encoder_is_routed_in_every_linear_layer_of_a_block() {
    let family = family("rank: 2");
    let models = [("base", base(Dtype::F32)), ("experts/cars", expert(1, Dtype::F32))];
    let rename = |tensors: Tensors| -> Tensors {
        let name = |name: String| name.replace("out_proj", "output.dense").replace("fc2", "dense");
        tensors.into_iter().map(|(key, tensor)| (name(key), tensor)).collect()
    };
    for (path, tensors) in models.into_iter().chain([("experts/birds", expert(2, Dtype::F32))]) {
        let mut tensors = rename(tensors);
        tensors.insert("pooler.dense.weight".into(), base(Dtype::F32)["visual_projection.weight"].clone());
        synthetic::write_tensors(&family.path(path).join("model.safetensors"), &tensors, &BTreeMap::new());
        family.write(&format!("{path}/config.json"), r#"{"model_type": "bert"}"#);
    }
    for task in ["cars", "birds"] {
        let path = family.path(&format!("calibration/{task}.safetensors"));
        let mut metadata = TensorFile::open(&path).unwrap().metadata().clone();
        for key in ["alias", "n"] {
            metadata.insert(key.into(), metadata[key].replace("fc2", "dense"));
        }
        let mut tensors = rename(read_tensors(&path).into_iter().collect());
        for block in 0..2 {
            let name =
                |weight: &str| format!("vision_model.encoder.layers.{block}.self_attn.{weight}.weight.input");
            let input = tensors[&name("q_proj")].clone();
            tensors.insert(name("output.dense"), input);
        }
        synthetic::write_tensors(&path, &tensors, &metadata);
    }
    family.merged(&[]);
    let router = RouterFile::open(&family.path("out")).unwrap();
    assert_eq!(router.weights().count(), 2 * 4, "q, k and v share prototypes");
    assert!(router.meta().stacks.is_empty(), "but not their experts");
    let adapter = adapter(&family, "cars");
    assert_eq!(adapter.len(), 2 * 2 * 6);
    let a = |weight: &str| &adapter[&lora_keys(&QUERY.replace("q_proj", weight))[0]];
    assert_ne!(a("q_proj"), a("k_proj"));
    let config = adapter_config(&family, "cars");
    let targets = config["target_modules"].as_array().unwrap();
    assert!(targets.contains(&json!("q_proj")) && !targets.contains(&json!("dense")), "{targets:?}");
    assert!(targets.contains(&json!("vision_model.encoder.layers.0.mlp.dense")), "{targets:?}");
}

// ---- the papers' sizes ----

/// A safetensors file whose values are a hole: only its header is read.
fn write_header(path: &Path, tensors: &[(String, Vec<usize>)], metadata: &Value) {
    let mut header = serde_json::Map::from_iter([("__metadata__".to_owned(), metadata.clone())]);
    let mut at = 0;
    for (name, shape) in tensors {
        let end = at + 2 * shape.iter().product::<usize>();
        let info = json!({ "dtype": "F16", "shape": shape, "data_offsets": [at, end] });
        header.insert(name.clone(), info);
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len((8 + header.len() + at) as u64).unwrap();
}

/// Parameters of one task's experts and values of all prototypes, for 8 experts of a CLIP ViT.
fn counts(width: usize, blocks: usize, rank: usize) -> (usize, usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (mut weights, mut inputs, mut alias) = (Vec::new(), Vec::new(), serde_json::Map::new());
    for block in 0..blocks {
        let name = |rest: &str| format!("vision_model.encoder.layers.{block}.{rest}.weight");
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            weights.push((name(&format!("self_attn.{projection}")), vec![width, width]));
        }
        weights.push((name("mlp.fc1"), vec![4 * width, width]));
        weights.push((name("mlp.fc2"), vec![width, 4 * width]));
        for (weight, d_in) in [("self_attn.q_proj", width), ("mlp.fc1", width), ("mlp.fc2", 4 * width)] {
            inputs.push((name(weight) + ".input", vec![1, d_in]));
        }
        for shared in ["k_proj", "v_proj"] {
            alias.insert(name(&format!("self_attn.{shared}")), name("self_attn.q_proj").into());
        }
    }
    write_header(&path("base.safetensors"), &weights, &json!({}));
    write_header(&path("expert.safetensors"), &weights, &json!({}));
    let alias = Value::from(alias).to_string();
    let metadata = json!({ "format": "esmerge-calibration-1", "alias": alias });
    write_header(&path("calibration.safetensors"), &inputs, &metadata);
    let models: String = (0..8)
        .map(|t| {
            format!("  - {{name: e{t}, model: expert.safetensors, calibration: calibration.safetensors}}\n")
        })
        .collect();
    let text = format!(
        "merge_method: esm++\nbase_model: base.safetensors\nmodels:\n{models}parameters: {{alpha: 1, rank: {rank}}}\n"
    );
    let recipe = Recipe::parse(&text, &path("recipe.yaml"), &Overrides::default()).unwrap();
    let experts = plan(&recipe, &Models::open(&recipe).unwrap()).unwrap().experts.unwrap();
    (experts.parameters, experts.routing)
}

#[test]
fn the_papers_models_have_the_papers_counts() {
    // ViT-B/32 and ViT-B/16 differ in the embedding only
    assert_eq!(counts(768, 12, 8), (663_552, 147_456));
    assert_eq!(counts(768, 12, 32), (2_654_208, 147_456));
    assert_eq!(counts(1024, 24, 8), (1_769_472, 393_216));
    assert_eq!(counts(1024, 24, 32), (7_077_888, 393_216));
}

// ---- what is refused ----

fn refuses(family: &Family, arguments: &[&str], code: i32, words: &[&str]) {
    let before = family.files();
    let output = family.esmerge(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(family.files(), before, "nothing is left behind");
}

fn merge_refuses(family: &Family, code: i32, words: &[&str]) {
    refuses(family, &["merge", "recipe.yaml", "out", "-q", "--device", "cpu"], code, words);
}

#[test]
fn wrong_keys_are_named() {
    merge_refuses(&family("rank: 0"), 2, &["`parameters.rank`", "esm_rank"]);
    merge_refuses(&family("rank: auto"), 2, &["`parameters.rank`", "whole number"]);
    merge_refuses(&family("rank: 0.5"), 2, &["`parameters.rank`"]);
    merge_refuses(&family("residual_base: base"), 2, &["`parameters.residual_base`", "pretrained"]);
    merge_refuses(&family("routed_layers: ['*.nope']"), 2, &["`parameters.routed_layers[0]`", "no matrix"]);
    merge_refuses(&family("esm_rank: none"), 2, &["`parameters.esm_rank`"]);
    let esm = Family::new();
    esm.write("recipe.yaml", format!("{RECIPE}  residual_base: esm\n"));
    merge_refuses(&esm, 2, &["`parameters.residual_base`", "esm++ has"]);
}

#[test]
fn experts_need_inputs_with_a_mean() {
    let none = family("");
    let text = fs::read_to_string(none.path("recipe.yaml")).unwrap();
    let text = ["cars", "birds"]
        .iter()
        .fold(text, |text, task| text.replace(&format!("calibration/{task}.safetensors"), "none"));
    none.write("recipe.yaml", text);
    merge_refuses(&none, 2, &["`models[0]`", "calibration: none"]);

    let missing = family("routed_layers: ['*.out_proj.weight']");
    merge_refuses(&missing, 1, &["calibration/cars", "out_proj.weight", "`routed_layers`"]);

    let gram = family("");
    let path = gram.path("calibration/cars.safetensors");
    let metadata = TensorFile::open(&path).unwrap().metadata().clone();
    let mut tensors: Tensors = read_tensors(&path).into_iter().collect();
    tensors.shift_remove(&format!("{FC1}.input"));
    let unit: Vec<f32> = (0..WIDTH * WIDTH).map(|k| f32::from(u8::from(k / WIDTH == k % WIDTH))).collect();
    tensors.insert(format!("{FC1}.gram"), Tensor::float(Dtype::F32, &[WIDTH, WIDTH], &unit));
    synthetic::write_tensors(&path, &tensors, &metadata);
    merge_refuses(&gram, 1, &["calibration/cars.safetensors", "mean", FC1]);
    tensors.insert(format!("{FC1}.mean"), Tensor::float(Dtype::F32, &[WIDTH + 1], &[1.0; WIDTH + 1]));
    synthetic::write_tensors(&path, &tensors, &metadata);
    merge_refuses(&gram, 1, &["calibration/cars.safetensors", ".mean", "another model"]);
    tensors.insert(format!("{FC1}.mean"), Tensor::float(Dtype::F32, &[WIDTH], &[1.0; WIDTH]));
    synthetic::write_tensors(&path, &tensors, &metadata);
    gram.merged(&[]);
}

#[test]
fn only_linear_layers_have_experts() {
    let family = family("routed_layers: ['projection', '*.fc1.weight']");
    for (path, mut tensors) in [
        ("base", base(Dtype::F32)),
        ("experts/cars", expert(1, Dtype::F32)),
        ("experts/birds", expert(2, Dtype::F32)),
    ] {
        tensors.insert("projection".into(), tensors["visual_projection.weight"].clone());
        family.write_model(path, &tensors);
    }
    merge_refuses(&family, 1, &["`projection`", "`routed_layers`", ".weight"]);
}

#[test]
fn an_experts_name_must_be_able_to_name_a_folder() {
    for name in ["../up", "a/b", ".hidden", "what?"] {
        let family = family("");
        let text = fs::read_to_string(family.path("recipe.yaml")).unwrap();
        family.write("recipe.yaml", text.replace("  - model", &format!("  - name: '{name}'\n    model")));
        merge_refuses(&family, 2, &["`models[0]`", "folder", name]);
    }
}

#[test]
fn an_output_of_esm_plus_cannot_be_rescaled() {
    let family = family("");
    let output = family.esmerge(&[
        "merge",
        "recipe.yaml",
        "out",
        "--keep-delta",
        "kept.safetensors",
        "--device",
        "cpu",
    ]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("rescale"), "{stderr}");
    for delta in ["kept.safetensors", "out", "out/model.safetensors"] {
        let arguments = ["rescale", delta, "--base", "base", "--alpha", "1", "other", "--device", "cpu"];
        refuses(&family, &arguments, 1, &["esm++", "--alpha", delta]);
    }
}
