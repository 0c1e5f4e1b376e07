//! Adapters as experts: what they add to a base, by every layout there is, and what of them is refused.

#[path = "common/adapter.rs"]
mod adapter;
#[path = "common/devices.rs"]
mod devices;
#[path = "common/synthetic.rs"]
mod synthetic;

use adapter::{Lora, product, relative, transposed};
use devices::{Device, Work, for_each_device};
use esmerge::adapter::Adapter;
use esmerge::backend::Dtype;
use esmerge::backend::layers::Layers;
use esmerge::checkpoint::Checkpoint;
use pollster::block_on;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use synthetic::{
    FC1, FC2, Family, MLP, Numbers, QUERY, Tensor, Tensors, WIDTH, base, read_tensors, write_tensors,
};

const QUERY_MODULE: &str = "vision_model.encoder.layers.0.self_attn.q_proj";
const KEY_MODULE: &str = "vision_model.encoder.layers.1.self_attn.k_proj";
const FC1_MODULE: &str = "vision_model.encoder.layers.0.mlp.fc1";
const FC2_MODULE: &str = "vision_model.encoder.layers.1.mlp.fc2";

/// An adapter of four layers of the synthetic family.
fn lora(seed: u64) -> Lora {
    Lora::new(seed, 3, 6.0)
        .linear(QUERY_MODULE, WIDTH, WIDTH, 3)
        .linear(KEY_MODULE, WIDTH, WIDTH, 3)
        .linear(FC1_MODULE, MLP, WIDTH, 3)
        .linear(FC2_MODULE, WIDTH, MLP, 3)
}

fn one(family: &Family, model: &str) -> BTreeMap<String, Tensor> {
    let recipe = format!("merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: {model}\n");
    family.write("recipe.yaml", recipe);
    family.merged(&[])
}

/// The base's tensors that are merged.
fn floats() -> impl Iterator<Item = (String, Tensor)> {
    base(Dtype::F32).into_iter().filter(|(_, t)| t.dtype == esmerge::checkpoint::Stored::F32)
}

fn sum(base: &[f32], scale: f64, delta: &[f64]) -> Vec<f64> {
    base.iter().zip(delta).map(|(&b, d)| f64::from(b) + scale * d).collect()
}

#[test]
fn base_and_adapter_are_w_plus_s_b_a_however_it_is_spelled() {
    let family = Family::new();
    let lora = lora(1);
    lora.write(&family.path("adapter"));
    let spellings = [
        "adapter",
        "base+adapter",
        "{model: base, lora: adapter}",
        "{model: {path: base}, lora: {path: adapter}}",
        "base\n    lora: adapter",
    ];
    for spelling in spellings {
        let merged = one(&family, spelling);
        for (tensor, values) in base(Dtype::F32) {
            let module = tensor.strip_suffix(".weight").unwrap_or(&tensor);
            if ![QUERY_MODULE, KEY_MODULE, FC1_MODULE, FC2_MODULE].contains(&module) {
                assert!(merged[&tensor] == values, "{tensor} is the base's");
                continue;
            }
            let want = sum(&values.values(), 2.0, &lora.product(module));
            let error = relative(&merged[&tensor].values(), &want);
            assert!(error < 1e-7, "{spelling}: {tensor}: {error:e}");
        }
    }
}

#[test]
fn a_module_has_the_scale_of_its_own_rank_and_alpha() {
    let family = Family::new();
    let lora = Lora::new(5, 3, 6.0)
        .linear(QUERY_MODULE, WIDTH, WIDTH, 3)
        .linear(FC1_MODULE, MLP, WIDTH, 5)
        .linear(FC2_MODULE, WIDTH, MLP, 2)
        .set("rank_pattern", json!({ "mlp.fc1": 5, r"layers\.[1-9]\.mlp\.fc2": 2, "fc2": 4 }))
        .set("alpha_pattern", json!({ "fc1": 20, "c1": 1 }));
    for (rslora, scales) in
        [(false, [2.0, 4.0, 3.0]), (true, [6.0 / 3f64.sqrt(), 20.0 / 5f64.sqrt(), 6.0 / 2f64.sqrt()])]
    {
        let lora = lora.clone().set("use_rslora", json!(rslora));
        lora.write(&family.path("adapter"));
        let merged = one(&family, "adapter");
        for ((module, tensor), scale) in
            [(QUERY_MODULE, QUERY), (FC1_MODULE, FC1), (FC2_MODULE, FC2)].into_iter().zip(scales)
        {
            let want = sum(&base(Dtype::F32)[tensor].values(), scale, &lora.product(module));
            let error = relative(&merged[tensor].values(), &want);
            assert!(error < 1e-7, "rslora {rslora}: {tensor}: {error:e}");
        }
    }
}

/// Writes what an adapter adds as a task vector.
fn write_delta(lora: &Lora, path: &Path) {
    let modules = [(QUERY_MODULE, WIDTH), (KEY_MODULE, WIDTH), (FC1_MODULE, WIDTH), (FC2_MODULE, MLP)];
    let tensor = |(module, columns): (&str, usize)| {
        let values: Vec<f32> = lora.product(module).into_iter().map(|v| (2.0 * v) as f32).collect();
        (format!("{module}.weight"), Tensor::float(Dtype::F32, &[values.len() / columns, columns], &values))
    };
    write_tensors(path, &modules.into_iter().map(tensor).collect::<Tensors>(), &BTreeMap::new());
}

#[test]
fn every_method_merges_adapters_as_the_task_vectors_that_they_are() {
    let family = Family::new();
    for (name, seed) in [("cars", 1), ("birds", 2)] {
        lora(seed).write(&family.path(&format!("adapters/{name}")));
        write_delta(&lora(seed), &family.path(&format!("{name}.delta.safetensors")));
    }
    let methods = [
        "merge_method: linear",
        "merge_method: linear\nparameters: {normalize: false, weight: 0.7}",
        "merge_method: task_arithmetic\nparameters: {lambda: 0.4}",
        "merge_method: tsv_m",
        "merge_method: esm\nparameters: {alpha: 0.5}",
        "merge_method: esm\nparameters: {alpha: 0.5, preset: esm-paper}",
        "merge_method: esm++\nparameters: {alpha: 0.5, rank: 2, routed_layers: '*.mlp.fc1.weight'}",
    ];
    for method in methods {
        let recipe = |cars: &str, birds: &str| {
            let calibration = |name: &str| match method.contains("esm") {
                true => format!(", calibration: calibration/{name}.safetensors"),
                false => String::new(),
            };
            format!(
                "{method}\nbase_model: base\nmodels:\n  - {{name: cars, model: {cars}{}}}\n  - {{name: birds, model: {birds}{}}}\n",
                calibration("cars"),
                calibration("birds")
            )
        };
        family.write("recipe.yaml", recipe("adapters/cars", "base+adapters/birds"));
        let adapters = family.merged(&["--accuracy", "exact"]);
        family.write(
            "recipe.yaml",
            recipe("{delta: cars.delta.safetensors}", "{delta: birds.delta.safetensors}"),
        );
        let deltas = family.merged(&["--accuracy", "exact"]);
        for (tensor, want) in &deltas {
            if want.dtype != esmerge::checkpoint::Stored::F32 {
                continue;
            }
            let want: Vec<f64> = want.values().into_iter().map(f64::from).collect();
            let error = relative(&adapters[tensor].values(), &want);
            // what `exact` promises of merged deltas: the two differ by the rounding of the differences
            assert!(error < 5e-6, "{method}: {tensor}: {error:e}");
        }
    }
}

#[test]
fn an_adapter_on_another_model_adds_to_what_that_differs_by() {
    let family = Family::new();
    let adapter = lora(3);
    // what it was trained on is no matter where a recipe names the model that it is added to
    let trained_on = family.path("base").display().to_string();
    adapter.clone().set("base_model_name_or_path", json!(trained_on)).write(&family.path("adapter"));
    for spelling in ["experts/cars+adapter", "{model: experts/cars, lora: adapter}"] {
        // base + 0.5 (X + s B A - base) + 0.25 (Y - base)
        family.write(
            "recipe.yaml",
            format!(
                "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: {spelling}\n    parameters: {{weight: 0.5}}\n  \
                 - {{model: experts/birds, parameters: {{weight: 0.25}}}}\n"
            ),
        );
        let merged = family.merged(&[]);
        let [x, y] = ["experts/cars", "experts/birds"].map(|folder| read_tensors(&family.path(folder)));
        for (tensor, base) in floats() {
            let module = tensor.strip_suffix(".weight").unwrap_or(&tensor);
            let own = adapter.tensors.contains_key(&format!("base_model.model.{module}.lora_A.weight"));
            let added = if own { adapter.product(module) } else { vec![0.0; base.values().len()] };
            let (x, y) = (x[&tensor].values(), y[&tensor].values());
            let values = base.values().into_iter().zip(x).zip(y).zip(added);
            let want = values.map(|(((b, x), y), d)| {
                let [b, x, y] = [b, x, y].map(f64::from);
                b + 0.5 * (x + 2.0 * d - b) + 0.25 * (y - b)
            });
            let error = relative(&merged[&tensor].values(), &want.collect::<Vec<_>>());
            assert!(error < 2e-7, "{spelling}: {tensor}: {error:e}");
        }
    }
}

#[test]
fn every_tensor_of_an_adapter_is_in_the_account() {
    let family = Family::new();
    lora(1)
        .tensor("classifier.weight", &[3, WIDTH])
        .tensor("visual_projection.weight", &[WIDTH, WIDTH])
        .write(&family.path("adapter"));
    let merged = one(&family, "adapter");
    let saved =
        lora(1).tensor("classifier.weight", &[3, WIDTH]).tensor("visual_projection.weight", &[WIDTH, WIDTH]);
    let whole: Vec<f64> = saved.tensors["base_model.model.visual_projection.weight"]
        .values()
        .into_iter()
        .map(f64::from)
        .collect();
    assert!(relative(&merged["visual_projection.weight"].values(), &whole) < 2e-7);
    let report: Value =
        serde_json::from_slice(&fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
    let account = &report["account"]["experts"]["adapter"];
    assert_eq!(account["read"], 10);
    assert_eq!(account["merged"], 9);
    assert_eq!(account["left_out"], json!({ "head of another task": 1 }));
    assert_eq!(account["lacking"], json!({ "not in the adapter": base(Dtype::F32).len() - 5 }));
    assert_eq!(report["inputs"][1]["role"], "adapter");
}

#[test]
fn modules_behind_a_prefix_are_found() {
    let family = Family::new();
    let plain = lora(1);
    let mut prefixed = lora(1);
    prefixed.tensors = plain
        .tensors
        .iter()
        .map(|(key, tensor)| (key.replace("base_model.model.", "base_model.model.clip."), tensor.clone()))
        .collect();
    plain.write(&family.path("adapter"));
    let want = one(&family, "adapter");
    prefixed.write(&family.path("prefixed"));
    assert!(one(&family, "prefixed") == want);
    prefixed.tensors = plain
        .tensors
        .iter()
        .map(|(key, tensor)| {
            (key.replace("base_model.model.vision_model.", "base_model.model."), tensor.clone())
        })
        .collect();
    prefixed.write(&family.path("without"));
    assert!(one(&family, "without") == want);
}

/// A base of tensors of odd shapes, and an adapter of all of them.
fn mixture() -> (Tensors, Value, Lora) {
    let shapes: [(&str, &[usize]); 7] = [
        ("wte.weight", &[11, 6]),
        ("h.0.attn.c_attn.weight", &[6, 18]),
        ("h.0.attn.c_proj.weight", &[6, 6]),
        ("h.0.conv.weight", &[5, 3, 2, 2]),
        ("h.0.mlp.experts.down_proj", &[4, 6, 7]),
        ("h.0.mlp.experts.gate_up_proj", &[4, 14, 6]),
        ("lm_head.weight", &[11, 6]),
    ];
    let mut numbers = Numbers::new(3);
    let mut tensor =
        |shape: &[usize]| Tensor::float(Dtype::F32, shape, &numbers.take(shape.iter().product(), 1.0));
    let tensors = shapes.iter().map(|(name, shape)| ((*name).to_owned(), tensor(shape))).collect();
    let lora = Lora::new(4, 2, 3.0)
        .set("target_parameters", json!(["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]))
        .set("fan_in_fan_out", json!(true))
        .tensor("wte.lora_embedding_A", &[2, 11])
        .tensor("wte.lora_embedding_B", &[6, 2])
        .linear("h.0.attn.c_attn", 18, 6, 2)
        .linear("h.0.attn.c_proj", 6, 6, 2)
        .tensor("h.0.conv.lora_A.weight", &[2, 3, 2, 2])
        .tensor("h.0.conv.lora_B.weight", &[5, 2, 1, 1])
        .linear("h.0.mlp.experts", 6, 7, 8)
        .linear("h.0.mlp.experts.base_layer", 14, 6, 8)
        .linear("lm_head", 11, 6, 2);
    (tensors, json!({ "model_type": "gpt2" }), lora)
}

/// `s B A` of each tensor of the mixture, as it lies in it, and of each expert's matrix in a tensor of all.
fn differences(lora: &Lora) -> BTreeMap<String, Vec<f64>> {
    let values = |key: &str| -> Vec<f64> {
        lora.tensors[&format!("base_model.model.{key}")]
            .values()
            .into_iter()
            .map(|v| 1.5 * f64::from(v))
            .collect()
    };
    let plain = |module: &str| -> Vec<f64> { lora.product(module).into_iter().map(|v| 1.5 * v).collect() };
    let experts = |weight: &str, module: &str, d_out: usize, d_in: usize| -> Vec<(String, Vec<f64>)> {
        // A: experts x r x d_in; B: d_out x r x experts
        let (a, b) = (values(&format!("{module}.lora_A.weight")), values(&format!("{module}.lora_B.weight")));
        let entry = |e: usize, i: usize, j: usize| {
            (0..2).map(|k| b[(i * 2 + k) * 4 + e] * a[(e * 2 + k) * d_in + j] / 1.5).sum::<f64>()
        };
        let entry = &entry;
        let matrix = |e| (0..d_out).flat_map(move |i| (0..d_in).map(move |j| entry(e, i, j))).collect();
        (0..4).map(|e| (format!("h.0.mlp.experts.{weight}[{e}]"), matrix(e))).collect()
    };
    let table = product(&values("wte.lora_embedding_B"), &values("wte.lora_embedding_A"), 2);
    let named = [
        ("wte.weight", transposed(&table.iter().map(|v| v / 1.5).collect::<Vec<_>>(), 11)),
        ("h.0.attn.c_attn.weight", transposed(&plain("h.0.attn.c_attn"), 6)),
        ("h.0.attn.c_proj.weight", transposed(&plain("h.0.attn.c_proj"), 6)),
        (
            "h.0.conv.weight",
            product(&values("h.0.conv.lora_B.weight"), &values("h.0.conv.lora_A.weight"), 2)
                .into_iter()
                .map(|v| v / 1.5)
                .collect(),
        ),
        ("lm_head.weight", plain("lm_head")),
    ];
    let named = named.map(|(name, values)| (name.to_owned(), values)).into_iter();
    let of_experts = experts("down_proj", "h.0.mlp.experts", 6, 7);
    named.chain(of_experts).chain(experts("gate_up_proj", "h.0.mlp.experts.base_layer", 14, 6)).collect()
}

struct Differences<'a> {
    adapter: &'a Adapter,
    want: &'a BTreeMap<String, Vec<f64>>,
}

impl Work for Differences<'_> {
    type Output = ();

    /// Of the whole tensor, and of pieces that begin and end anywhere.
    fn run<B: Layers>(self, backend: &B) {
        for (tensor, want) in self.want {
            for step in [want.len(), 1, 5, 29] {
                for start in (0..want.len()).step_by(step) {
                    let range = start..want.len().min(start + step);
                    let extents = self.adapter.extents(tensor, &range).unwrap();
                    let stored: Vec<Vec<u8>> = extents.iter().map(|extent| extent.read().unwrap()).collect();
                    let factors: Vec<_> = stored.iter().map(|bytes| (Dtype::F32, &bytes[..])).collect();
                    let got = self.adapter.difference(backend, tensor, &range, &factors).unwrap().unwrap();
                    let got = block_on(backend.download(&got)).unwrap();
                    let error = relative(&got, &want[range.clone()]);
                    assert!(error < 1e-5, "{tensor} {range:?}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn differences_lie_in_tensors_as_their_layers_multiply_whole_and_in_pieces() {
    let (tensors, config, lora) = mixture();
    let folder = tempfile::tempdir().unwrap();
    write_tensors(&folder.path().join("model.safetensors"), &tensors, &BTreeMap::new());
    lora.write(&folder.path().join("adapter"));
    let base = Checkpoint::open(folder.path()).unwrap();
    let adapter = Adapter::open(&folder.path().join("adapter"), &base, &config).unwrap();
    let want = differences(&lora);
    for device in for_each_device().iter().filter(|device| device.present()) {
        device.with(Differences { adapter: &adapter, want: &want });
    }
}

#[test]
fn what_would_be_lost_of_an_adapter_is_refused_by_name() {
    let cases: [(Lora, &str); 17] = [
        (lora(1).set("use_dora", json!(true)), "DoRA"),
        (lora(1).tensor(&format!("{QUERY_MODULE}.lora_magnitude_vector"), &[WIDTH]), "DoRA"),
        (lora(1).set("peft_type", json!("LOHA")), "LOHA"),
        (lora(1).tensor(&format!("{QUERY_MODULE}.hada_w1_a"), &[WIDTH, 2]), "LoHa"),
        (lora(1).tensor(&format!("{QUERY_MODULE}.lokr_w1"), &[2, 2]), "LoKr"),
        (lora(1).set("peft_type", json!("IA3")), "IA3"),
        (lora(1).tensor(&format!("{QUERY_MODULE}.ia3_l"), &[WIDTH, 1]), "IA3"),
        (lora(1).set("bias", json!("lora_only")), "bias: lora_only"),
        (lora(1).tensor(&format!("{QUERY_MODULE}.lora_B.bias"), &[WIDTH]), "a bias beside the factors"),
        (lora(1).set("a_new_method", json!({ "x": 1 })), "a_new_method"),
        (lora(1).tensor(&format!("{QUERY_MODULE}.novelty"), &[2]), "novelty"),
        (lora(1).set("init_lora_weights", json!("pissa_niter_4")), "PiSSA"),
        (lora(1).set("trainable_token_indices", json!([1, 2])), "single trained rows"),
        (lora(1).set("r", json!(4)), "have rank 4"),
        (lora(1).linear("vision_model.encoder.layers.7.mlp.fc1", MLP, WIDTH, 3), "layers.7.mlp.fc1"),
        (
            lora(1).linear("vision_model.encoder.layers.1.mlp.fc1", MLP, WIDTH + 1, 3),
            "do not make the tensor",
        ),
        (
            lora(1).tensor("vision_model.encoder.layers.1.mlp.fc1.lora_A.weight", &[3, WIDTH]),
            "without the other factor",
        ),
    ];
    let family = Family::new();
    let recipe = "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: adapter\n";
    family.write("recipe.yaml", recipe);
    for (lora, word) in cases {
        let _ = fs::remove_dir_all(family.path("adapter"));
        lora.write(&family.path("adapter"));
        let output = family.merge(&[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{word}");
        assert!(
            text.contains(word) && text.contains("adapter") && !text.contains("panicked"),
            "`{word}`: {text}"
        );
        assert!(!family.path("out").exists());
    }
}

#[test]
fn an_adapter_of_another_base_is_refused_unless_that_is_insisted_on() {
    let family = Family::new();
    let other = family.path("experts/cars").display().to_string();
    lora(1).set("base_model_name_or_path", json!(other)).write(&family.path("adapter"));
    let recipe = "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: adapter\n";
    family.write("recipe.yaml", recipe);
    let output = family.merge(&[]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && text.contains("was trained on") && text.contains("--allow-mismatch"),
        "{text}"
    );
    assert!(family.merge(&["--allow-mismatch", "base_model_name_or_path"]).status.success());

    let same = family.path("base/model.safetensors").display().to_string();
    lora(1).set("base_model_name_or_path", json!(same)).write(&family.path("adapter"));
    fs::remove_dir_all(family.path("out")).unwrap();
    assert!(family.merge(&[]).status.success());

    lora(1).set("base_model_name_or_path", json!("someone/clip")).write(&family.path("adapter"));
    fs::remove_dir_all(family.path("out")).unwrap();
    family.merge(&[]);
    let report = fs::read_to_string(family.path("out/esmerge-report.json")).unwrap();
    assert!(report.contains("someone/clip; that this is"), "a note says what could not be verified");
}

#[test]
fn a_folder_with_a_model_and_an_adapter_is_the_models() {
    let family = Family::new();
    lora(1).write(&family.path("experts/cars"));
    let merged = one(&family, "experts/cars");
    let whole: Vec<f64> =
        read_tensors(&family.path("experts/cars"))[FC1].values().into_iter().map(f64::from).collect();
    assert!(relative(&merged[FC1].values(), &whole) < 2e-7);
    assert!(!family.path("out/adapter_config.json").exists());
}

#[test]
fn a_layer_that_no_adapter_has_needs_no_calibration_and_stays() {
    let family = Family::new();
    let only = |seed| Lora::new(seed, 3, 6.0).linear(FC1_MODULE, MLP, WIDTH, 3);
    only(1).write(&family.path("adapters/cars"));
    only(2).write(&family.path("adapters/birds"));
    for (name, seed) in [("cars", 1), ("birds", 2)] {
        let path = family.path(&format!("calibration/{name}.safetensors"));
        let mut writer = esmerge::calibration::Writer::create(&path, true).unwrap();
        let input = Some(Numbers::new(seed).take(16 * WIDTH, 1.0));
        let entry = esmerge::calibration::Entry { tokens: 16, d_in: WIDTH, input, gram: None, mean: None };
        writer.add(FC1, &entry, &[]).unwrap();
        writer.finish(4, None).unwrap();
    }
    family.write("recipe.yaml", synthetic::RECIPE.replace("experts/", "adapters/"));
    let merged = family.merged(&[]);
    for (tensor, values) in base(Dtype::F32) {
        assert_eq!(merged[&tensor] == values, tensor != FC1, "{tensor}");
    }
}

#[test]
fn apply_is_the_sum_of_what_adapters_add() {
    let family = Family::new();
    lora(1).write(&family.path("adapters/cars"));
    lora(2).write(&family.path("adapters/birds"));
    let flags = ["-q", "--device", "cpu", "-o", "applied"];
    let output = family.esmerge(
        &[&["apply", "base", "adapters/cars", "adapters/birds", "--scale", "0.5"], &flags[..]].concat(),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let applied = read_tensors(&family.path("applied"));
    for (tensor, values) in base(Dtype::F32) {
        let module = tensor.strip_suffix(".weight").unwrap_or(&tensor);
        if ![QUERY_MODULE, KEY_MODULE, FC1_MODULE, FC2_MODULE].contains(&module) {
            assert!(applied[&tensor] == values, "{tensor}");
            continue;
        }
        let both: Vec<f64> =
            lora(1).product(module).iter().zip(lora(2).product(module)).map(|(a, b)| a + b).collect();
        let error = relative(&applied[&tensor].values(), &sum(&values.values(), 1.0, &both));
        assert!(error < 1e-7, "{tensor}: {error:e}");
    }
    let output = family.esmerge(&["apply", "base", "experts/cars", "-o", "other"]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("is no adapter"));
}

/// A full model of the base and an adapter.
fn baked(family: &Family, seed: u64, folder: &str) {
    let mut tensors = base(Dtype::F32);
    for module in [QUERY_MODULE, KEY_MODULE, FC1_MODULE, FC2_MODULE] {
        let tensor = &mut tensors[&format!("{module}.weight")];
        let values: Vec<f32> =
            sum(&tensor.values(), 2.0, &lora(seed).product(module)).into_iter().map(|v| v as f32).collect();
        *tensor = Tensor::float(Dtype::F32, &tensor.shape, &values);
    }
    family.write_model(folder, &tensors);
}

#[test]
fn an_adapter_is_extracted_from_the_model_it_was_baked_into() {
    let family = Family::new();
    baked(&family, 1, "tuned");
    for more in [&[][..], &["--calibration", "calibration/cars.safetensors"], &["--accuracy", "exact"]] {
        let _ = fs::remove_dir_all(family.path("adapter"));
        let arguments = [
            "extract", "tuned", "--base", "base", "--rank", "3", "-o", "adapter", "--device", "cpu", "--json",
        ];
        let output = family.esmerge(&[&arguments[..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        for layer in report["layers"].as_array().unwrap() {
            let kept = layer["energy_retention"].as_f64().unwrap();
            assert!(layer["norm"] == 0.0 || kept > 1.0 - 1e-6, "{layer}");
        }
        assert_eq!(report["left_out"], json!([]));
        let applied = one(&family, "adapter");
        for (tensor, want) in read_tensors(&family.path("tuned")) {
            if want.dtype == esmerge::checkpoint::Stored::F32 {
                let want: Vec<f64> = want.values().into_iter().map(f64::from).collect();
                let error = relative(&applied[&tensor].values(), &want);
                assert!(error < 2e-6, "{more:?} {tensor}: {error:e}");
            }
        }
    }
}

#[test]
fn extract_says_what_it_keeps_and_what_it_leaves_out() {
    let family = Family::new();
    let output = family.esmerge(&[
        "extract",
        "experts/cars",
        "--base",
        "base",
        "--rank",
        "2",
        "-o",
        "adapter",
        "--device",
        "cpu",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("energy kept") && table.contains("have no factors: 17."), "{table}");
    let report: Value =
        serde_json::from_slice(&fs::read(family.path("adapter/esmerge-report.json")).unwrap()).unwrap();
    let tensors = |key: &str| report[key].as_array().unwrap().len();
    assert_eq!(tensors("layers"), 12);
    let floats = base(Dtype::F32).values().filter(|t| t.dtype != esmerge::checkpoint::Stored::I64).count();
    assert_eq!(tensors("left_out"), floats - 12);
    let output = family.esmerge(&["extract", "base", "--base", "base", "--rank", "2", "-o", "none"]);
    assert!(!output.status.success());
    let output = family.esmerge(&[
        "extract",
        "base+adapter",
        "--base",
        "base",
        "--rank",
        "1",
        "-o",
        "less",
        "-q",
        "--device",
        "cpu",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const METHODS: [&str; 7] = [
    "merge_method: linear\nparameters: {weight: 0.7}",
    "merge_method: task_arithmetic\nparameters: {lambda: 0.4}",
    "merge_method: tsv_m\nparameters: {alpha: 0.9}",
    "merge_method: esm\nparameters: {alpha: 0.5}",
    "merge_method: esm\nparameters: {alpha: 0.5, preset: esm-paper, rank: 2}",
    "merge_method: esm\nparameters: {alpha: 0.5, preset: esm-lm}",
    "merge_method: esm\nparameters: {alpha: 0.5, decomposition: svd, fusion: concat}",
];

/// The other methods: those that see all differences in one basis of outputs, and those that see them whole.
const OTHERS: [&str; 17] = [
    "merge_method: knots_ties\nparameters: {density: 0.6}",
    "merge_method: swudi",
    "merge_method: swudi\nparameters: {filter: flow, start: mean}",
    "merge_method: regmean\nparameters: {ridge: 0.1}",
    "merge_method: regmean\nparameters: {ridge: 0.1, ridge_to: zero}",
    "merge_method: iso_c",
    "merge_method: iso_cts",
    "merge_method: dc_merge\nparameters: {density: 0.5}",
    "merge_method: ties\nparameters: {density: 0.5}",
    "merge_method: breadcrumbs",
    "merge_method: consensus_ta",
    "merge_method: model_stock",
    "merge_method: sce",
    "merge_method: ram",
    "merge_method: tsv_m\nparameters: {alpha: 0.9, calibrate: svc}",
    "merge_method: task_arithmetic\nparameters: {calibrate: svc}",
    "merge_method: esm\nparameters: {alpha: 0.5, calibrate: svc}",
];

/// A recipe of adapters in some order.
fn recipe_of(method: &str, names: &[&str], more: &str) -> String {
    let model = |name: &&str| {
        let calibration = if method.contains("esm") || method.contains("regmean") {
            format!(", calibration: calibration/{name}.safetensors")
        } else {
            String::new()
        };
        format!("  - {{name: {name}, model: adapters/{name}{calibration}}}\n")
    };
    let models: String = names.iter().map(model).collect();
    format!("{method}\nbase_model: base\nmodels:\n{models}{more}")
}

/// Adapters of three experts, of different ranks and not all of the same layers.
fn three(family: &Family) {
    for (name, seed, r) in [("cars", 1, 3), ("birds", 2, 2), ("flowers", 3, 1)] {
        let more = if seed == 2 {
            "vision_model.encoder.layers.1.mlp.fc1"
        } else {
            "vision_model.encoder.layers.0.self_attn.v_proj"
        };
        let d_out = if seed == 2 { MLP } else { WIDTH };
        Lora::new(seed, r, 2.0 * r as f64)
            .linear(QUERY_MODULE, WIDTH, WIDTH, r)
            .linear(FC1_MODULE, MLP, WIDTH, r)
            .linear(FC2_MODULE, WIDTH, MLP, r)
            .linear(more, d_out, WIDTH, r)
            .write(&family.path(&format!("adapters/{name}")));
    }
    family.calibrate("flowers", 3, 9, None);
}

#[test]
fn adapters_merged_into_one_are_what_their_full_differences_merge_to() {
    let family = Family::new();
    three(&family);
    for method in METHODS {
        family.write("recipe.yaml", recipe_of(method, &["cars", "birds", "flowers"], ""));
        let full = family.merged(&["--accuracy", "exact"]);
        // `balanced` promises no more than 1e-3 of either
        for (accuracy, most) in [("exact", 1e-5), ("balanced", 1e-3)] {
            let mut merged = Vec::new();
            for order in [["cars", "birds", "flowers"], ["flowers", "cars", "birds"]] {
                family.write("recipe.yaml", recipe_of(method, &order, "out: lora\nrank: 24\n"));
                let _ = fs::remove_dir_all(family.path("out"));
                let output = family.merge(&["--accuracy", accuracy]);
                assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
                let _ = fs::remove_dir_all(family.path("adapter"));
                fs::rename(family.path("out"), family.path("adapter")).unwrap();
                merged.push(one(&family, "adapter"));
            }
            for (tensor, want) in full.iter().filter(|(_, t)| t.dtype == esmerge::checkpoint::Stored::F32) {
                let want: Vec<f64> = want.values().into_iter().map(f64::from).collect();
                for got in &merged {
                    let error = relative(&got[tensor].values(), &want);
                    assert!(error < most, "{method}, {accuracy}: {tensor}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn adapters_are_merged_into_one_alike_on_every_device() {
    let family = Family::new();
    three(&family);
    let gpus = for_each_device().into_iter().filter_map(|device| match device {
        Device::Gpu(name, _) => Some(format!("gpu:{name}")),
        _ => None,
    });
    let gpus: Vec<String> = gpus.collect();
    for method in METHODS {
        family.write("recipe.yaml", recipe_of(method, &["cars", "birds", "flowers"], ""));
        let full = family.merged(&["--accuracy", "exact"]);
        family
            .write("recipe.yaml", recipe_of(method, &["cars", "birds", "flowers"], "out: lora\nrank: 24\n"));
        for device in &gpus {
            let _ = fs::remove_dir_all(family.path("out"));
            let output = family.esmerge(
                &[&["merge", "recipe.yaml", "out", "-q", "--accuracy", "exact"][..], &["--device", device]]
                    .concat(),
            );
            assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
            let _ = fs::remove_dir_all(family.path("adapter"));
            fs::rename(family.path("out"), family.path("adapter")).unwrap();
            let got = one(&family, "adapter");
            for (tensor, want) in full.iter().filter(|(_, t)| t.dtype == esmerge::checkpoint::Stored::F32) {
                let want: Vec<f64> = want.values().into_iter().map(f64::from).collect();
                let error = relative(&got[tensor].values(), &want);
                assert!(error < 1e-5, "{method} on {device}: {tensor}: {error:e}");
            }
        }
    }
}

/// What `out: lora` gives for a recipe, added to the base.
fn by_adapter(family: &Family, recipe: &str) -> BTreeMap<String, Tensor> {
    family.write("recipe.yaml", recipe);
    let _ = fs::remove_dir_all(family.path("out"));
    let output = family.merge(&["--accuracy", "exact"]);
    assert!(output.status.success(), "{recipe}: {}", String::from_utf8_lossy(&output.stderr));
    let _ = fs::remove_dir_all(family.path("adapter"));
    fs::rename(family.path("out"), family.path("adapter")).unwrap();
    one(family, "adapter")
}

#[test]
fn every_other_method_gives_the_adapter_of_what_it_makes_of_full_differences() {
    let family = Family::new();
    three(&family);
    let names = ["cars", "birds", "flowers"];
    for method in OTHERS {
        family.write("recipe.yaml", recipe_of(method, &names, ""));
        let full = family.merged(&["--accuracy", "exact"]);
        let got = by_adapter(&family, &recipe_of(method, &names, "out: lora\nrank: 24\n"));
        for (tensor, want) in full.iter().filter(|(_, t)| t.dtype == esmerge::checkpoint::Stored::F32) {
            let want: Vec<f64> = want.values().into_iter().map(f64::from).collect();
            let error = relative(&got[tensor].values(), &want);
            assert!(error < 1e-5, "{method}: {tensor}: {error:e}");
        }
    }
}

#[test]
fn embeddings_and_weights_that_are_stored_across_are_merged_into_one_adapter_too() {
    let family = Family::new();
    let shapes = [
        ("wte.weight", [11, 6]),
        ("h.0.attn.c_attn.weight", [6, 18]),
        ("h.0.attn.c_proj.weight", [6, 6]),
        ("h.0.mlp.c_fc.weight", [6, 24]),
    ];
    let mut numbers = Numbers::new(3);
    let mut tensor = |(name, shape): &(&str, [usize; 2])| {
        ((*name).to_owned(), Tensor::float(Dtype::F32, shape, &numbers.take(shape[0] * shape[1], 1.0)))
    };
    let base: Tensors = shapes.iter().map(&mut tensor).collect();
    let _ = fs::remove_dir_all(family.path("base"));
    family.write_model("base", &base);
    family.write("base/config.json", r#"{"model_type": "gpt2", "architectures": ["GPT2Model"]}"#);
    for (name, seed, r) in [("cars", 1, 2), ("birds", 2, 1)] {
        Lora::new(seed, r, 2.0 * r as f64)
            .set("fan_in_fan_out", json!(true))
            .tensor("wte.lora_embedding_A", &[r, 11])
            .tensor("wte.lora_embedding_B", &[6, r])
            .linear("h.0.attn.c_attn", 18, 6, r)
            .linear("h.0.attn.c_proj", 6, 6, r)
            .linear("h.0.mlp.c_fc", 24, 6, r)
            .write(&family.path(&format!("adapters/{name}")));
        let path = family.path(&format!("calibration/{name}.safetensors"));
        fs::remove_file(&path).unwrap();
        let mut writer = esmerge::calibration::Writer::create(&path, false).unwrap();
        for (weight, _) in &shapes[1..] {
            let input = Some(Numbers::new(seed + 7).take(9 * 6, 1.0));
            let entry = esmerge::calibration::Entry { tokens: 9, d_in: 6, input, gram: None, mean: None };
            writer.add(weight, &entry, &[]).unwrap();
        }
        writer.finish(4, None).unwrap();
    }
    let names = ["cars", "birds"];
    for method in [
        "merge_method: task_arithmetic",
        "merge_method: tsv_m\nparameters: {alpha: 0.9}",
        "merge_method: esm\nparameters: {alpha: 0.5}",
        "merge_method: regmean\nparameters: {ridge: 0.1}",
        "merge_method: knots_ties\nparameters: {density: 0.6}",
        "merge_method: ties\nparameters: {density: 0.5}",
    ] {
        family.write("recipe.yaml", recipe_of(method, &names, ""));
        let full = family.merged(&["--accuracy", "exact"]);
        let got = by_adapter(&family, &recipe_of(method, &names, "out: lora\nrank: 11\n"));
        for (tensor, want) in &full {
            let want: Vec<f64> = want.values().into_iter().map(f64::from).collect();
            let error = relative(&got[tensor].values(), &want);
            assert!(error < 1e-5, "{method}: {tensor}: {error:e}");
            assert!(full[tensor].values() != base[tensor].values(), "{method}: {tensor}");
        }
    }
    let keys = read_tensors(&family.path("adapter/adapter_model.safetensors"));
    assert_eq!(keys["base_model.model.wte.lora_embedding_A"].shape, [6, 11]);
    assert_eq!(keys["base_model.model.h.0.attn.c_attn.lora_B.weight"].shape, [18, 6]);
    let settings = fs::read(family.path("adapter/adapter_config.json")).unwrap();
    let settings: Value = serde_json::from_slice(&settings).unwrap();
    assert_eq!(settings["fan_in_fan_out"], true);
}

#[test]
fn an_adapter_of_small_rank_holds_what_the_report_says() {
    let family = Family::new();
    three(&family);
    for compress in ["truncate", "ctm"] {
        for method in METHODS {
            let more = format!("out: lora\nrank: 3\ncompress: {compress}\n");
            family.write("recipe.yaml", recipe_of(method, &["cars", "birds", "flowers"], &more));
            let _ = fs::remove_dir_all(family.path("out"));
            let output = family.merge(&[]);
            assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
            let report: Value =
                serde_json::from_slice(&fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
            let kept = &report["adapter"]["energy_retention"];
            match compress {
                "ctm" => assert!(kept["min"].as_f64().unwrap() > 1.0 - 1e-5, "{method}: {kept}"),
                _ => assert!(kept["min"].as_f64().unwrap() < 1.0 - 1e-3, "{method}: {kept}"),
            }
            assert_eq!(report["adapter"]["compress"], compress);
            for (key, tensor) in read_tensors(&family.path("out/adapter_model.safetensors")) {
                let rank = if key.contains("lora_A") { tensor.shape[0] } else { tensor.shape[1] };
                assert_eq!(rank, 3, "{key}");
            }
        }
    }
}

#[test]
fn one_adapter_compressed_to_its_own_rank_is_itself() {
    let family = Family::new();
    lora(1).write(&family.path("adapters/cars"));
    let want = one(&family, "adapters/cars");
    for compress in ["truncate", "ctm"] {
        let more = format!("out: lora\nrank: 3\ncompress: {compress}\n");
        family.write("recipe.yaml", recipe_of("merge_method: task_arithmetic", &["cars"], &more));
        let _ = fs::remove_dir_all(family.path("out"));
        assert!(family.merge(&[]).status.success());
        let _ = fs::remove_dir_all(family.path("again"));
        fs::rename(family.path("out"), family.path("again")).unwrap();
        let got = one(&family, "again");
        for tensor in [QUERY, FC1, FC2] {
            let want: Vec<f64> = want[tensor].values().into_iter().map(f64::from).collect();
            assert!(relative(&got[tensor].values(), &want) < 1e-6, "{compress} {tensor}");
        }
    }
}

/// What elects signs in the shared cores of compressed adapters, and what only drops entries there.
const IN_CORES: [(&str, f64); 7] = [
    ("ties", 0.75),
    ("dare_ties", 0.75),
    ("della", 0.75),
    ("breadcrumbs_ties", 0.75),
    ("dare_linear", 1.0),
    ("della_linear", 1.0),
    ("breadcrumbs", 1.0),
];

#[test]
fn what_drops_entries_and_elects_signs_merges_compressed_adapters_with_a_strength_of_its_own() {
    let family = Family::new();
    three(&family);
    let names = ["cars", "birds", "flowers"];
    for (method, strength) in IN_CORES {
        let merged = |names: &[&str], parameters: &str| {
            let method = format!("merge_method: {method}\nparameters: {{density: 0.6{parameters}}}");
            by_adapter(&family, &recipe_of(&method, names, "out: lora\nrank: 3\ncompress: ctm\n"))
        };
        let plain = merged(&names, "");
        let report: Value =
            serde_json::from_slice(&fs::read(family.path("adapter/esmerge-report.json")).unwrap()).unwrap();
        assert_eq!(report["alpha"], strength, "{method}");
        assert!(report["adapter"]["energy_retention"]["min"].as_f64().unwrap() > 1.0 - 1e-5, "{method}");
        let near =
            |got: &BTreeMap<String, Tensor>, want: &BTreeMap<String, Tensor>, scale: f64, what: &str| {
                for (tensor, base) in floats() {
                    let delta = |values: &BTreeMap<String, Tensor>| -> Vec<f64> {
                        let pairs = values[&tensor].values().into_iter().zip(base.values());
                        pairs.map(|(w, b)| f64::from(w) - f64::from(b)).collect()
                    };
                    let (got, want) = (delta(got), delta(want));
                    let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt();
                    let error =
                        got.iter().zip(&want).map(|(g, w)| (g - scale * w).powi(2)).sum::<f64>().sqrt();
                    assert!(error <= 1e-5 * norm, "{method}, {what}: {tensor}: {error:e} of {norm:e}");
                }
            };
        near(&merged(&names, ", lambda: 1.5"), &plain, 1.5 / strength, "lambda");
        // chance goes by the place of a model
        if !method.contains("dare") && !method.contains("della") {
            near(&merged(&["flowers", "cars", "birds"], ""), &plain, 1.0, "another order");
        }
    }
}

#[test]
fn what_cannot_be_one_adapter_is_refused() {
    let family = Family::new();
    lora(1).write(&family.path("adapters/cars"));
    lora(2).tensor("visual_projection.weight", &[WIDTH, WIDTH]).write(&family.path("adapters/birds"));
    let plain = "merge_method: task_arithmetic";
    let cases = [
        (recipe_of(plain, &["cars"], "out: lora\n"), "the rank of the adapter"),
        (recipe_of(plain, &["cars"], "rank: 4\n"), "`out: lora` too"),
        (recipe_of(plain, &["cars"], "out: lora\nrank: 0\n"), "a whole number from 1"),
        (
            recipe_of(plain, &["cars", "birds"], "out: lora\nrank: 4\n"),
            "holds `visual_projection.weight` whole",
        ),
        (
            recipe_of(plain, &["cars"], "out: lora\nrank: 4\n").replace("adapters/cars", "experts/cars"),
            "esmerge extract",
        ),
        (
            recipe_of(
                "merge_method: esm\nparameters: {alpha: {search: accuracy}}",
                &["cars"],
                "out: lora\nrank: 4\n",
            ),
            "a search of alpha",
        ),
        (
            recipe_of("merge_method: esm++\nparameters: {alpha: 1}", &["cars"], "out: lora\nrank: 4\n"),
            "esm++",
        ),
        (
            recipe_of(
                "merge_method: linear\nparameters: {normalize: false}",
                &["cars"],
                "out: lora\nrank: 4\n",
            ),
            "normalize",
        ),
        (
            recipe_of("merge_method: slerp\nparameters: {t: 0.5}", &["cars"], "out: lora\nrank: 4\n"),
            "weights of weights",
        ),
        (
            recipe_of(
                "merge_method: ties\nparameters: {density: 0.5, scope: model}",
                &["cars"],
                "out: lora\nrank: 4\n",
            ),
            "scope: model",
        ),
        (
            recipe_of("merge_method: regmean_plus", &["cars"], "out: lora\nrank: 4\n")
                .replace("calibration: calibration/cars.safetensors", "calibration: {data: images}"),
            "behind the model merged so far",
        ),
        (
            recipe_of("merge_method: sce", &["cars"], "out: lora\nrank: 4\ncompress: ctm\n"),
            "compress: truncate",
        ),
    ];
    for (recipe, word) in cases {
        family.write("recipe.yaml", recipe);
        let output = family.merge(&[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && text.contains(word) && !text.contains("panicked"),
            "`{word}`: {text}"
        );
        assert!(!family.path("out").exists());
    }
}

/// What the modules of [`lora`] are called in a file of kohya's or diffusers', and how factors are.
fn write_single(
    path: &Path,
    name: &dyn Fn(&str) -> String,
    factors: [&str; 2],
    alpha: Option<f32>,
    more: Tensors,
) {
    let mut tensors = more;
    for module in [QUERY_MODULE, KEY_MODULE, FC1_MODULE, FC2_MODULE] {
        for (factor, end) in ["lora_A", "lora_B"].into_iter().zip(factors) {
            let tensor = lora(1).tensors[&format!("base_model.model.{module}.{factor}.weight")].clone();
            tensors.insert(format!("{}{end}", name(module)), tensor);
        }
        if let Some(alpha) = alpha {
            tensors.insert(format!("{}.alpha", name(module)), Tensor::float(Dtype::F32, &[], &[alpha]));
        }
    }
    write_tensors(path, &tensors, &BTreeMap::new());
}

#[test]
fn modules_by_their_original_names_are_found_on_a_diffusers_unet() {
    let family = Family::new();
    let theirs =
        ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.attentions.0.proj_in"];
    let own = ["input_blocks.4.1.transformer_blocks.0.attn1.to_q", "middle_block.1.proj_in"];
    let unet =
        theirs.map(|module| (format!("{module}.weight"), Tensor::float(Dtype::F32, &[4, 4], &[0.5; 16])));
    let _ = fs::remove_dir_all(family.path("base"));
    family.write_model("base", &Tensors::from(unet));
    family.write("base/config.json", r#"{"_class_name": "UNet2DConditionModel"}"#);
    let factors = [("lora_A", ".lora_down.weight"), ("lora_B", ".lora_up.weight")];
    let drawn = Lora::new(1, 2, 2.0).linear(theirs[0], 4, 4, 2).linear(theirs[1], 4, 4, 2);
    let write = |file: &str, name: &dyn Fn(usize) -> String| {
        let mut tensors = Tensors::new();
        for (i, module) in theirs.iter().enumerate() {
            for (factor, end) in factors {
                let tensor = drawn.tensors[&format!("base_model.model.{module}.{factor}.weight")].clone();
                tensors.insert(format!("{}{end}", name(i)), tensor);
            }
        }
        write_tensors(&family.path(file), &tensors, &BTreeMap::new());
    };
    write("diffusers.safetensors", &|i| format!("unet.{}", theirs[i]));
    write("kohya.safetensors", &|i| format!("lora_unet_{}", own[i].replace('.', "_")));
    write("comfy.safetensors", &|i| format!("diffusion_model.{}", own[i]));
    let want = one(&family, "diffusers.safetensors");
    assert!(want.values().all(|tensor| tensor.values() != [0.5; 16]));
    for file in ["kohya.safetensors", "comfy.safetensors"] {
        assert!(one(&family, file) == want, "{file}");
    }
}

#[test]
fn adapters_in_one_file_are_read_by_the_spellings_of_kohya_and_diffusers() {
    let family = Family::new();
    lora(1).write(&family.path("adapter"));
    let want = one(&family, "adapter"); // its scale is 2
    let kohya = |module: &str| format!("lora_unet_{}", module.replace('.', "_"));
    let without =
        |module: &str| format!("lora_unet_{}", module.replace("vision_model.", "").replace('.', "_"));
    let encoder = Tensors::from([
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc3.lora_down.weight".to_owned(),
            Tensor::float(Dtype::F32, &[1, 2], &[1.0; 2]),
        ),
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc3.lora_up.weight".to_owned(),
            Tensor::float(Dtype::F32, &[2, 1], &[1.0; 2]),
        ),
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc3.alpha".to_owned(),
            Tensor::float(Dtype::F32, &[], &[1.0]),
        ),
    ]);
    let down_up = [".lora_down.weight", ".lora_up.weight"];
    write_single(&family.path("kohya.safetensors"), &kohya, down_up, Some(6.0), encoder);
    write_single(&family.path("short.safetensors"), &without, down_up, Some(6.0), Tensors::new());
    for file in ["kohya.safetensors", "short.safetensors"] {
        let got = one(&family, file);
        for (tensor, want) in &want {
            assert!(got[tensor] == *want, "{file}: {tensor}");
        }
        let report: Value =
            serde_json::from_slice(&fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
        let account = &report["account"]["experts"][file.trim_end_matches(".safetensors")];
        assert_eq!(account["merged"], 12, "{account}");
        let left = if file.starts_with("kohya") { json!({ "another tower": 3 }) } else { Value::Null };
        assert_eq!(account["left_out"], left);
    }
    // without alpha the scale is 1
    let diffusers = |module: &str| format!("unet.{module}");
    let spellings = [[".lora_A.weight", ".lora_B.weight"], [".lora.down.weight", ".lora.up.weight"]];
    for factors in spellings {
        write_single(&family.path("diffusers.safetensors"), &diffusers, factors, None, Tensors::new());
        let got = one(&family, "diffusers.safetensors");
        let want = sum(&base(Dtype::F32)[FC1].values(), 1.0, &lora(1).product(FC1_MODULE));
        assert!(relative(&got[FC1].values(), &want) < 1e-7);
    }
    for (key, word) in [
        ("hada_w1_a", "LoHa"),
        ("lora_mid.weight", "LoCon"),
        ("novelty", "not known"),
        ("dora_scale", "DoRA"),
    ] {
        let more = Tensors::from([(
            format!("{}.{key}", kohya(FC1_MODULE)),
            Tensor::float(Dtype::F32, &[1], &[1.0]),
        )]);
        write_single(&family.path("kohya.safetensors"), &kohya, down_up, Some(6.0), more);
        family.write(
            "recipe.yaml",
            "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: kohya.safetensors\n",
        );
        let _ = fs::remove_dir_all(family.path("out"));
        let text = String::from_utf8(family.merge(&[]).stderr).unwrap();
        assert!(text.contains(word) && !text.contains("panicked"), "`{word}`: {text}");
    }
}

/// Width of the tiny Flux below, and of its MLPs.
const FLUX: [usize; 2] = [6, 10];

/// A linear layer by the original's name: rows, columns, and diffusers' modules with the rows of each.
type FluxLayer = (&'static str, usize, usize, Vec<(&'static str, usize)>);

/// Linear layers of a block of each kind.
fn flux_layers() -> Vec<FluxLayer> {
    let [d, wide] = FLUX;
    vec![
        (
            "double_blocks.0.img_attn.qkv",
            3 * d,
            d,
            vec![
                ("transformer_blocks.0.attn.to_q", d),
                ("transformer_blocks.0.attn.to_k", d),
                ("transformer_blocks.0.attn.to_v", d),
            ],
        ),
        (
            "double_blocks.0.txt_attn.qkv",
            3 * d,
            d,
            vec![
                ("transformer_blocks.0.attn.add_q_proj", d),
                ("transformer_blocks.0.attn.add_k_proj", d),
                ("transformer_blocks.0.attn.add_v_proj", d),
            ],
        ),
        ("double_blocks.0.img_mlp.0", wide, d, vec![("transformer_blocks.0.ff.net.0.proj", wide)]),
        (
            "single_blocks.1.linear1",
            3 * d + wide,
            d,
            vec![
                ("single_transformer_blocks.1.attn.to_q", d),
                ("single_transformer_blocks.1.attn.to_k", d),
                ("single_transformer_blocks.1.attn.to_v", d),
                ("single_transformer_blocks.1.proj_mlp", wide),
            ],
        ),
        ("single_blocks.1.linear2", d, d + wide, vec![("single_transformer_blocks.1.proj_out", d)]),
    ]
}

#[test]
fn fused_layers_of_flux_are_found_as_they_are_and_in_the_parts_that_diffusers_has() {
    let layers = flux_layers();
    let mut numbers = Numbers::new(9);
    let (mut original, mut diffusers, mut drawn) = (Tensors::new(), Tensors::new(), Lora::new(1, 2, 2.0));
    for (module, rows, cols, parts) in &layers {
        let values = numbers.take(rows * cols, 1.0);
        original.insert(format!("{module}.weight"), Tensor::float(Dtype::F32, &[*rows, *cols], &values));
        let mut first = 0;
        for (part, rows) in parts {
            let own = &values[first * cols..(first + rows) * cols];
            diffusers.insert(format!("{part}.weight"), Tensor::float(Dtype::F32, &[*rows, *cols], own));
            first += rows;
        }
        drawn = drawn.linear(module, *rows, *cols, 2);
    }
    let family = Family::new();
    let write = |file: &str, name: &dyn Fn(&str) -> String, less: usize| {
        let mut tensors = Tensors::new();
        for (module, rows, ..) in &layers {
            for (factor, end) in [("lora_A", ".lora_down.weight"), ("lora_B", ".lora_up.weight")] {
                let mut tensor = drawn.tensors[&format!("base_model.model.{module}.{factor}.weight")].clone();
                if factor == "lora_B" && less > 0 {
                    let values = tensor.values()[..2 * (rows - less)].to_vec();
                    tensor = Tensor::float(Dtype::F32, &[rows - less, 2], &values);
                }
                tensors.insert(format!("{}{end}", name(module)), tensor);
            }
            tensors.insert(format!("{}.alpha", name(module)), Tensor::float(Dtype::F32, &[], &[1.0]));
        }
        write_tensors(&family.path(file), &tensors, &BTreeMap::new());
    };
    let kohya = |module: &str| format!("lora_unet_{}", module.replace('.', "_"));
    write("kohya.safetensors", &kohya, 0);
    write("comfy.safetensors", &|module| format!("diffusion_model.{module}"), 0);
    let mut merged = Vec::new();
    for base in [&original, &diffusers] {
        let _ = fs::remove_dir_all(family.path("base"));
        family.write_model("base", base);
        family.write("base/config.json", "{}");
        let kohya = one(&family, "kohya.safetensors");
        assert!(one(&family, "comfy.safetensors") == kohya);
        merged.push(kohya);
    }
    for (module, _, cols, parts) in &layers {
        let name = format!("{module}.weight");
        let want = sum(&original[&name].values(), 0.5, &drawn.product(module)); // alpha / r
        assert!(relative(&merged[0][&name].values(), &want) < 1e-6, "{module}");
        let of_parts = parts.iter().flat_map(|(part, _)| merged[1][&format!("{part}.weight")].values());
        let of_parts: Vec<f32> = of_parts.collect();
        assert_eq!(of_parts.len(), merged[0][&name].values().len());
        assert!(relative(&of_parts, &want) < 1e-6, "{module} in {} parts of {cols} columns", parts.len());
    }
    // out: lora holds the same on the base of parts
    let recipe = "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: kohya.safetensors}]\n\
                  parameters: {weight: 1.0}\nout: lora\nrank: 2\n";
    family.write("recipe.yaml", recipe);
    let _ = fs::remove_dir_all(family.path("out"));
    let output = family.merge(&["--accuracy", "exact"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let _ = fs::remove_dir_all(family.path("adapter"));
    fs::rename(family.path("out"), family.path("adapter")).unwrap();
    let again = one(&family, "adapter");
    for (tensor, want) in &merged[1] {
        let want: Vec<f64> = want.values().into_iter().map(f64::from).collect();
        assert!(relative(&again[tensor].values(), &want) < 1e-5, "{tensor}");
    }
    // what does not fit is refused by name
    write("short.safetensors", &kohya, 1);
    family.write(
        "recipe.yaml",
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: short.safetensors}]\n",
    );
    let _ = fs::remove_dir_all(family.path("out"));
    let text = String::from_utf8(family.merge(&[]).stderr).unwrap();
    assert!(text.contains("double_blocks_0_img_attn_qkv") && text.contains("17 rows"), "{text}");
}
