//! Every tensor of every model is merged, copied or left out by a named rule (docs/tensors.md).

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::checkpoint::Stored;
use esmerge::plan::{Account, Family as Models, Rule, plan};
use esmerge::recipe::{Overrides, Recipe};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use synthetic::{Numbers, Tensor, Tensors, read_tensors, write_tensors};
use tempfile::TempDir;

const D: usize = 8;
const VOCABULARY: usize = 20;

fn matrix(numbers: &mut Numbers, shape: &[usize]) -> Tensor {
    Tensor::float(Dtype::F32, shape, &numbers.take(shape.iter().product(), 1.0))
}

/// An encoder's tensors without any head, their names behind a prefix.
fn encoder(seed: u64, prefix: &str) -> Tensors {
    let mut numbers = Numbers::new(seed);
    let mut tensors = Tensors::new();
    tensors
        .insert(format!("{prefix}embeddings.word_embeddings.weight"), matrix(&mut numbers, &[VOCABULARY, D]));
    for block in 0..2 {
        for (name, shape) in [
            ("attention.self.query.weight", vec![D, D]),
            ("output.dense.weight", vec![D, D]),
            ("output.LayerNorm.weight", vec![D]),
            ("output.LayerNorm.bias", vec![D]),
        ] {
            tensors.insert(format!("{prefix}encoder.layer.{block}.{name}"), matrix(&mut numbers, &shape));
        }
    }
    tensors
}

fn insert(tensors: &mut Tensors, name: &str, seed: u64, shape: &[usize]) {
    tensors.insert(name.to_owned(), matrix(&mut Numbers::new(seed), shape));
}

/// A folder of models.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn model(&self, name: &str, tensors: &Tensors, config: &Value) {
        let folder = self.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        write_tensors(&folder.join("model.safetensors"), tensors, &BTreeMap::new());
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
    }

    fn open(&self, method: &str, experts: &[&str], allow: &[&str]) -> Result<(Account, Vec<String>), String> {
        let models: String = experts.iter().map(|e| format!("  - {{model: {e}}}\n")).collect();
        let text = format!("merge_method: {method}\nbase_model: base\nmodels:\n{models}");
        let allow_mismatch = allow.iter().map(|key| (*key).to_owned()).collect();
        let overrides = Overrides { allow_mismatch, ..Overrides::default() };
        let path = self.path().join("recipe.yaml");
        fs::write(&path, &text).unwrap();
        let recipe = Recipe::parse(&text, &path, &overrides).map_err(|e| e.to_string())?;
        let family = Models::open(&recipe).map_err(|e| e.to_string())?;
        let plan = plan(&recipe, &family).map_err(|e| e.to_string())?;
        assert!(plan.account.base.balances() && plan.account.experts.values().all(|a| a.balances()));
        Ok((plan.account, plan.warnings))
    }

    fn merged(&self, method: &str, experts: &[&str]) -> BTreeMap<String, Tensor> {
        self.open(method, experts, &[]).unwrap();
        let out = self.path().join("out");
        let _ = fs::remove_dir_all(&out);
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_esmerge"))
            .args(["merge", "recipe.yaml", "out", "-q", "--device", "cpu"])
            .current_dir(self.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        read_tensors(&out)
    }
}

fn bert() -> Value {
    json!({"model_type": "bert", "num_attention_heads": 2, "vocab_size": VOCABULARY})
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

fn average(a: &Tensor, b: &Tensor) -> Vec<f32> {
    a.values().iter().zip(b.values()).map(|(a, b)| (a + b) / 2.0).collect()
}

fn close(found: &Tensor, expected: &[f32]) -> bool {
    found.values().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
}

#[test]
fn heads_of_another_task_are_left_out_and_the_bases_own_is_kept() {
    let place = Place::new();
    let mut base = encoder(1, "bert.");
    insert(&mut base, "cls.predictions.bias", 3, &[VOCABULARY]);
    insert(&mut base, "bert.pooler.dense.weight", 4, &[D, D]);
    let config = with(bert(), "architectures", json!(["BertForPreTraining"]));
    place.model("base", &base, &config);
    for (name, seed) in [("a", 11), ("b", 12)] {
        let mut expert = encoder(seed, "bert.");
        insert(&mut expert, "classifier.weight", seed, &[3, D]);
        place.model(name, &expert, &with(bert(), "architectures", json!(["BertForTokenClassification"])));
    }
    let (account, warnings) = place.open("linear", &["a", "b"], &[]).unwrap();
    assert_eq!(account.base.copied[&Rule::Head], 2);
    assert_eq!(account.experts["a"].left_out[&Rule::Head], 1);
    assert_eq!(account.experts["a"].lacking[&Rule::Head], 2);
    assert!(warnings.iter().any(|w| w.contains("classifier.weight")), "{warnings:?}");
    let merged = place.merged("linear", &["a", "b"]);
    assert_eq!(merged.keys().collect::<Vec<_>>(), {
        let mut keys: Vec<_> = base.keys().collect();
        keys.sort();
        keys
    });
    assert_eq!(merged["bert.pooler.dense.weight"], base["bert.pooler.dense.weight"]);
    let query = "bert.encoder.layer.1.attention.self.query.weight";
    assert!(close(&merged[query], &average(&encoder(11, "bert.")[query], &encoder(12, "bert.")[query])));
}

#[test]
fn a_common_prefix_is_mapped_in_either_direction_and_said() {
    for (of_base, of_expert) in
        [("", "bert."), ("bert.", ""), ("", "_orig_mod."), ("model.", "model.language_model.model.")]
    {
        let place = Place::new();
        let base = encoder(1, of_base);
        place.model("base", &base, &bert());
        place.model("a", &encoder(2, of_expert), &bert());
        let (account, warnings) = place.open("linear", &["a"], &[]).unwrap();
        assert_eq!(account.experts["a"].renamed[&Rule::Prefix], base.len());
        assert!(warnings.iter().any(|w| w.contains("behind") || w.contains("without")), "{warnings:?}");
        let merged = place.merged("linear", &["a"]);
        for (name, tensor) in &encoder(2, of_base) {
            assert_eq!(&merged[name], tensor, "{name}");
        }
    }
}

#[test]
fn norms_in_the_older_spelling_are_the_same_norms() {
    let old = |tensors: Tensors| -> Tensors {
        let name = |n: String| {
            n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        };
        tensors.into_iter().map(|(n, t)| (name(n), t)).collect()
    };
    let place = Place::new();
    place.model("base", &old(encoder(1, "")), &bert());
    place.model("a", &encoder(2, "bert."), &bert());
    place.model("b", &old(encoder(3, "")), &bert());
    let (account, _) = place.open("linear", &["a", "b"], &[]).unwrap();
    assert_eq!(account.experts["a"].renamed[&Rule::OlderSpelling], 4);
    assert!(account.experts["b"].renamed.is_empty());
    let merged = place.merged("linear", &["a", "b"]);
    let [a, b] = [encoder(2, ""), encoder(3, "")];
    let expected =
        average(&a["encoder.layer.0.output.LayerNorm.bias"], &b["encoder.layer.0.output.LayerNorm.bias"]);
    assert!(close(&merged["encoder.layer.0.output.LayerNorm.beta"], &expected));
}

/// A decoder, with a head of its own or none in the file.
fn decoder(seed: u64, head: bool) -> Tensors {
    let mut tensors = Tensors::new();
    insert(&mut tensors, "model.embed_tokens.weight", seed, &[VOCABULARY, D]);
    insert(&mut tensors, "model.layers.0.mlp.up_proj.weight", seed + 100, &[D, D]);
    if head {
        insert(&mut tensors, "lm_head.weight", seed + 200, &[VOCABULARY, D]);
    }
    tensors
}

fn llama(class: &str, tie: bool) -> Value {
    json!({"model_type": "llama", "architectures": [class], "tie_word_embeddings": tie, "vocab_size": VOCABULARY})
}

#[test]
fn a_tied_head_is_the_embedding() {
    let place = Place::new();
    place.model("base", &decoder(1, true), &llama("LlamaForCausalLM", false));
    place.model("tied", &decoder(2, false), &llama("LlamaForCausalLM", true));
    place.model("classifier", &decoder(3, false), &llama("LlamaForSequenceClassification", false));
    place.model("incomplete", &decoder(4, false), &llama("LlamaForCausalLM", false));
    let (account, _) = place.open("linear", &["tied", "classifier"], &[]).unwrap();
    assert_eq!(account.experts["tied"].renamed[&Rule::Tied], 1);
    assert_eq!(account.experts["classifier"].lacking[&Rule::Head], 1);
    let refused = place.open("linear", &["incomplete"], &[]).unwrap_err();
    assert!(refused.contains("lm_head.weight") && refused.contains("incomplete"), "{refused}");
    let merged = place.merged("linear", &["tied"]);
    assert_eq!(merged["lm_head.weight"], decoder(2, false)["model.embed_tokens.weight"]);

    // the other way round: the base stores one, the expert both
    place.model("base", &decoder(1, false), &llama("LlamaForCausalLM", true));
    place.model("both", &decoder(2, true), &llama("LlamaForCausalLM", true));
    place.model("untied", &decoder(2, true), &llama("LlamaForCausalLM", false));
    let (account, _) = place.open("linear", &["both"], &[]).unwrap();
    assert_eq!(account.experts["both"].left_out[&Rule::Tied], 1);
    let refused = place.open("linear", &["untied"], &[]).unwrap_err();
    assert!(refused.contains("--allow-mismatch tie_word_embeddings"), "{refused}");
    place.open("linear", &["untied"], &["tie_word_embeddings"]).unwrap();
}

#[test]
fn an_alias_in_the_metadata_stands_for_its_tensor() {
    let place = Place::new();
    place.model("base", &decoder(1, true), &json!({"model_type": "other"}));
    place.model("a", &decoder(2, false), &json!({"model_type": "other"}));
    let alias = BTreeMap::from([("lm_head.weight".to_owned(), "model.embed_tokens.weight".to_owned())]);
    write_tensors(&place.path().join("a/model.safetensors"), &decoder(2, false), &alias);
    let (account, _) = place.open("linear", &["a"], &[]).unwrap();
    assert_eq!(account.experts["a"].renamed[&Rule::Alias], 1);
}

#[test]
fn a_vision_tower_merges_into_a_model_of_two_towers() {
    let tower = |seed| {
        let mut tensors = Tensors::new();
        insert(&mut tensors, "vision_model.encoder.layers.0.mlp.fc1.weight", seed, &[D, D]);
        insert(&mut tensors, "visual_projection.weight", seed, &[D, D]);
        tensors
    };
    let mut whole = tower(1);
    insert(&mut whole, "text_model.encoder.layers.0.mlp.fc1.weight", 5, &[D, D]);
    insert(&mut whole, "logit_scale", 6, &[]);
    let place = Place::new();
    place.model("base", &whole, &json!({"model_type": "clip", "vision_config": {}, "text_config": {}}));
    place.model("a", &tower(2), &json!({"model_type": "clip_vision_model"}));
    let (account, _) = place.open("linear", &["a"], &[]).unwrap();
    assert_eq!(account.base.copied[&Rule::Tower], 2);
    let merged = place.merged("linear", &["a"]);
    assert_eq!(merged["logit_scale"], whole["logit_scale"]);
    assert_eq!(merged["visual_projection.weight"], tower(2)["visual_projection.weight"]);
}

#[test]
fn what_cannot_be_merged_is_copied_bit_for_bit_if_it_is_the_same_in_all_models() {
    let mask = Tensor::float(Dtype::F32, &[2, 2], &[0.0, f32::NEG_INFINITY, 0.0, 0.0]);
    let schedule = Tensor {
        dtype: Stored::F64,
        shape: vec![2],
        bytes: [0.1f64, 0.2].iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let model = |seed, schedule: &Tensor| {
        let mut tensors = encoder(seed, "");
        tensors.insert("causal_mask".to_owned(), mask.clone());
        tensors.insert("alphas_cumprod".to_owned(), schedule.clone());
        tensors.insert("embeddings.position_ids".to_owned(), Tensor::integers(&[0, 1, 2]));
        tensors
    };
    let place = Place::new();
    place.model("base", &model(1, &schedule), &bert());
    place.model("a", &model(2, &schedule), &bert());
    let (account, _) = place.open("linear", &["a"], &[]).unwrap();
    assert_eq!(account.base.copied[&Rule::Identical], 2);
    assert_eq!(account.base.copied[&Rule::Integer], 1);
    let merged = place.merged("linear", &["a"]);
    assert_eq!((&merged["causal_mask"], &merged["alphas_cumprod"]), (&mask, &schedule));
    let other =
        Tensor { bytes: [0.1f64, 0.3].iter().flat_map(|v| v.to_le_bytes()).collect(), ..schedule.clone() };
    place.model("a", &model(2, &other), &bert());
    let refused = place.open("linear", &["a"], &[]).unwrap_err();
    assert!(refused.contains("alphas_cumprod") && refused.contains("F64"), "{refused}");
}

#[test]
fn quantised_models_are_refused_by_name() {
    let codes = |dtype, shape: &[usize], bytes| Tensor { dtype, shape: shape.to_vec(), bytes };
    type Extra = Vec<(&'static str, Tensor)>;
    let cases: [(&str, Value, Extra); 4] = [
        (
            "bitsandbytes",
            with(bert(), "quantization_config", json!({"quant_method": "bitsandbytes"})),
            vec![],
        ),
        ("GPTQ", bert(), vec![("layers.0.q.qweight", codes(Stored::I32, &[1, D], vec![0; 4 * D]))]),
        ("int8", bert(), vec![("layers.0.q.SCB", Tensor::float(Dtype::F32, &[1], &[1.0]))]),
        (
            "integers",
            bert(),
            vec![
                ("layers.0.q.codes", codes(Stored::I8, &[2, D], vec![0; 2 * D])),
                ("layers.0.q.row_scales", Tensor::float(Dtype::F32, &[2], &[1.0, 2.0])),
            ],
        ),
    ];
    for (word, config, extra) in cases {
        for quantised in ["base", "a"] {
            let place = Place::new();
            place.model("base", &encoder(1, ""), &bert());
            place.model("a", &encoder(2, ""), &bert());
            let mut tensors = encoder(3, "");
            tensors.extend(extra.iter().map(|(name, t)| ((*name).to_owned(), t.clone())));
            place.model(quantised, &tensors, &config);
            let refused = place.open("linear", &["a"], &[]).unwrap_err();
            for word in [word, "quantised", &format!("/{quantised}"), "dequantize"] {
                assert!(refused.contains(word), "`{word}` is not in: {refused}");
            }
        }
    }
}

#[test]
fn an_expert_of_another_architecture_is_refused_unless_the_user_insists() {
    let place = Place::new();
    place.model("base", &encoder(1, ""), &bert());
    place.model("a", &encoder(2, ""), &with(bert(), "num_attention_heads", json!(4)));
    let refused = place.open("linear", &["a"], &[]).unwrap_err();
    for word in
        ["`num_attention_heads`", "`a`", "a/config.json", "4", "2", "--allow-mismatch num_attention_heads"]
    {
        assert!(refused.contains(word), "`{word}` is not in: {refused}");
    }
    place.open("linear", &["a"], &["num_attention_heads"]).unwrap();
    place.model("a", &encoder(2, ""), &with(bert(), "eos_token_id", json!(7)));
    let (_, warnings) = place.open("linear", &["a"], &[]).unwrap();
    assert!(warnings.iter().any(|w| w.contains("eos_token_id")), "{warnings:?}");
}

#[test]
fn a_tensor_that_no_rule_explains_is_an_error() {
    let place = Place::new();
    let mut base = encoder(1, "");
    place.model("base", &base, &bert());
    let mut expert = encoder(2, "");
    insert(&mut expert, "encoder.layer.2.output.dense.weight", 1, &[D, D]);
    place.model("a", &expert, &bert());
    let refused = place.open("linear", &["a"], &[]).unwrap_err();
    assert!(
        refused.contains("encoder.layer.2.output.dense.weight") && refused.contains("docs/tensors.md"),
        "{refused}"
    );
    insert(&mut base, "encoder.layer.3.output.dense.weight", 1, &[D, D]);
    place.model("base", &base, &bert());
    let refused = place.open("linear", &["a"], &[]).unwrap_err();
    assert!(refused.contains("encoder.layer.3.output.dense.weight"), "{refused}");
}

/// Random families: prefixes, heads, ties, spellings, integers, infinite masks, shards and omissions from the index. Whatever is
/// drawn either merges with accounts that balance, or is refused; and what merges has the base's names.
#[test]
fn the_account_balances_for_random_families() {
    let mut merged = 0;
    for seed in 0..300 {
        let mut numbers = Numbers::new(9000 + seed);
        let mut chance = |share: f32| numbers.next() < 2.0 * share - 1.0;
        let place = Place::new();
        let prefixes = ["", "bert.", "model.", "_orig_mod.", "a.b."];
        let mut pick = |n: usize| (0..n - 1).find(|_| chance(0.3)).unwrap_or(n - 1);
        let of_base = prefixes[pick(prefixes.len())];
        let mut names = Vec::new();
        for (i, model) in ["base", "a", "b"].into_iter().enumerate() {
            let prefix = if i == 0 || pick(3) > 0 { of_base } else { prefixes[pick(prefixes.len())] };
            let mut tensors = encoder(seed * 10 + i as u64, prefix);
            if pick(2) == 0 {
                insert(&mut tensors, "classifier.1.weight", 1, &[pick(3) + 2, D]);
            }
            if pick(2) == 0 {
                insert(&mut tensors, &format!("{prefix}pooler.dense.weight"), 1, &[D, D]);
            }
            if pick(3) == 0 {
                insert(&mut tensors, "cls.predictions.decoder.weight", 1, &[VOCABULARY, D]);
            }
            if pick(2) == 0 {
                tensors.insert(format!("{prefix}embeddings.position_ids"), Tensor::integers(&[0, 1]));
            }
            if pick(2) == 0 {
                let mask = Tensor::float(Dtype::F32, &[1], &[f32::NEG_INFINITY]);
                tensors.insert(format!("{prefix}encoder.layer.0.attention.masked_bias"), mask);
            }
            if pick(3) == 0 {
                let old = |n: String| {
                    n.replace("LayerNorm.weight", "LayerNorm.gamma")
                        .replace("LayerNorm.bias", "LayerNorm.beta")
                };
                tensors = tensors.into_iter().map(|(n, t)| (old(n), t)).collect();
            }
            let ties = pick(2) == 0;
            let class = ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"][pick(3)];
            let config =
                with(with(bert(), "architectures", json!([class])), "tie_word_embeddings", json!(ties));
            place.model(model, &tensors, &config);
            if pick(3) == 0 {
                shard(&place.path().join(model), &tensors, pick(2) == 0);
            }
            names.push(tensors.keys().cloned().collect::<Vec<_>>());
        }
        match place.open("linear", &["a", "b"], &["tie_word_embeddings"]) {
            Err(refused) => assert!(!refused.contains("defect"), "{seed}: {refused}"),
            Ok((account, _)) => {
                merged += 1;
                assert_eq!(account.base.read, names[0].len(), "{seed}");
                assert_eq!(account.experts["a"].read, names[1].len(), "{seed}");
                assert_eq!(account.experts["b"].read, names[2].len(), "{seed}");
                assert_eq!(
                    account.base.read,
                    account.base.merged + account.base.copied.values().sum::<usize>()
                );
                if seed % 10 == 0 {
                    let found = place.merged_allowing(&["a", "b"]);
                    let mut expected = names[0].clone();
                    expected.sort();
                    assert_eq!(found.into_keys().collect::<Vec<_>>(), expected, "{seed}");
                }
            }
        }
    }
    assert!(merged > 150, "most families merge: {merged} of 300");
}

impl Place {
    fn merged_allowing(&self, experts: &[&str]) -> BTreeMap<String, Tensor> {
        self.open("linear", experts, &["tie_word_embeddings"]).unwrap();
        let out = self.path().join("out");
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_esmerge"))
            .args([
                "merge",
                "recipe.yaml",
                "out",
                "-q",
                "--device",
                "cpu",
                "--allow-mismatch",
                "tie_word_embeddings",
            ])
            .current_dir(self.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        read_tensors(&out)
    }
}

/// Two shards and their index in place of the single file; with `omit` the index leaves out one tensor.
fn shard(folder: &Path, tensors: &Tensors, omit: bool) {
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let half = tensors.len() / 2;
    let mut map = serde_json::Map::new();
    for (i, part) in [&tensors.as_slice()[..half], &tensors.as_slice()[half..]].into_iter().enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", i + 1);
        let own: Tensors = part.iter().map(|(n, t)| (n.clone(), t.clone())).collect();
        write_tensors(&folder.join(&file), &own, &BTreeMap::new());
        map.extend(own.keys().skip(usize::from(omit)).map(|name| (name.clone(), Value::from(file.clone()))));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}
