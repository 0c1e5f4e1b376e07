//! `capture` and calibration inside a merge, through the program, on the tiny models of `model_goldens`.

#[path = "common/place.rs"]
mod place;
#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::calibration::{Calibration, Statistic};
use esmerge::checkpoint::{Stored, TensorFile};
use place::{IDS, Place, golden, ids};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use synthetic::{Tensor, Tensors, read_tensors, write_tensors};

#[test]
fn a_merge_that_captures_gives_the_bytes_of_one_from_captured_files() {
    let of_method = |method: &str, architecture: &str| {
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
                "merge_method: {method}\nbase_model: base\nmodels:\n  - {{model: a, calibration: {a}}}\n  \
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
        assert!(from_files == merged("inside"), "{method}, {architecture}: captured inside");
        assert!(from_files == merged("mixed"), "{method}, {architecture}: one of each");
    };
    for architecture in ["bert", "llama", "clip"] {
        of_method("esm", architecture);
        of_method("regmean", architecture);
    }
    of_method("regmean", "gpt2"); // stores its weights transposed
}

/// What `regmean_plus` sees of a block are the inputs of the expert's own block behind the merged embeddings and blocks: those of a
/// model that has them, from which `regmean` makes the same of that block.
#[test]
fn regmean_plus_sees_each_block_behind_the_merged_ones() {
    for architecture in ["bert", "llama", "clip", "gpt2"] {
        let place = Place::new();
        for (name, seed) in [("base", 0), ("a", 1), ("b", 2)] {
            place.model(name, architecture, seed);
        }
        let data = golden(&format!("{architecture}.safetensors")).display().to_string();
        let inside = format!("{{data: {data}, samples: 2}}");
        let merge = |out: &str, method: &str, calibration: [&str; 2], alpha: f64| {
            place.write("recipe.yaml", regression(method, calibration, alpha));
            place.succeeds(&["merge", "recipe.yaml", out, "-q"]);
            read_tensors(&place.path(out))
        };
        let plus = merge("plus", "regmean_plus", [&inside; 2], 1.0);
        for expert in ["a", "b"] {
            let (half, own) = (format!("half_{expert}"), read_tensors(&place.path(expert)));
            place.model(&half, architecture, 0);
            let behind: Tensors = plus
                .iter()
                .map(|(name, merged)| (name.clone(), if is_of_block(name, 1) { &own[name] } else { merged }))
                .map(|(name, tensor)| {
                    (name, Tensor { shape: tensor.shape.clone(), bytes: tensor.bytes.clone(), ..*tensor })
                })
                .collect();
            write_tensors(&place.path(&half).join("model.safetensors"), &behind, &BTreeMap::new());
            let out = format!("{expert}.calib");
            place.succeeds(&["capture", &half, "--data", &data, "--samples", "2", "-o", &out, "-q"]);
            without_fingerprint(&place.path(&out));
        }
        let want = merge("want", "regmean", ["a.calib", "b.calib"], 1.0);
        let usual = merge("usual", "regmean", [&inside; 2], 1.0);
        let matrices = || want.iter().filter(|(name, t)| is_of_block(name, 1) && t.shape.len() == 2);
        assert!(matrices().count() >= 4, "{architecture}");
        for (name, want) in matrices() {
            let error = distance(&plus[name], want);
            assert!(error < 1e-6, "{architecture}: {name}: {error:e}");
        }
        let differ = matrices().filter(|(name, want)| distance(&usual[*name], want) > 1e-4).count();
        assert!(differ > 0, "{architecture}: the merged block before changes nothing");
        // alpha is a factor of what was merged, and nothing that layers see
        let (half, base) =
            (merge("half", "regmean_plus", [&inside; 2], 0.5), read_tensors(&place.path("base")));
        for (name, whole) in plus.iter().filter(|(_, t)| t.dtype == Stored::F32) {
            let middle = whole
                .values()
                .iter()
                .zip(base[name].values())
                .map(|(w, b)| (w + b) / 2.0)
                .collect::<Vec<_>>();
            let error = distance(&half[name], &Tensor::float(Dtype::F32, &whole.shape, &middle));
            assert!(error < 1e-6, "{architecture}: {name}: {error:e}");
        }
    }
}

#[test]
fn regmean_plus_of_one_block_is_regmean() {
    let place = Place::new();
    let base = read_tensors(&golden("bert"));
    for (name, seed) in [("base", 0), ("a", 1), ("b", 2)] {
        place.model(name, "bert", seed);
        let mut tensors: Tensors = read_tensors(&place.path(name)).into_iter().collect();
        tensors.retain(|name, _| !is_of_block(name, 1));
        for (key, tensor) in tensors.iter_mut().filter(|(key, _)| key.contains("embeddings")) {
            tensor.bytes.clone_from(&base[key].bytes);
        }
        write_tensors(&place.path(name).join("model.safetensors"), &tensors, &BTreeMap::new());
        let config = fs::read_to_string(place.path(name).join("config.json")).unwrap();
        place.write(
            &format!("{name}/config.json"),
            config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"),
        );
    }
    let inside = format!("{{data: {}, samples: 2}}", golden("bert.safetensors").display());
    let merged = |method: &str| {
        place.write("recipe.yaml", regression(method, [&inside; 2], 1.0));
        place.succeeds(&["merge", "recipe.yaml", method, "-q"]);
        fs::read(place.path(method).join("model.safetensors")).unwrap()
    };
    assert!(merged("regmean_plus") == merged("regmean"));
}

#[test]
fn regmean_plus_is_refused_where_models_cannot_run() {
    let place = Place::new();
    for (name, seed) in [("base", 0), ("a", 1), ("b", 2)] {
        place.model(name, "bert", seed);
    }
    place.ids("ids.safetensors", &IDS);
    let refuses = |text: String, words: &[&str]| {
        place.write("recipe.yaml", text);
        place.refuses(&["merge", "recipe.yaml", "out", "-q"], words);
    };
    let inside = "{data: ids.safetensors}";
    refuses(
        regression("regmean_plus", ["a.calib", inside], 1.0),
        &["models[0]", "regmean_plus", "no file can hold", "data: PATH"],
    );
    refuses(regression("regmean_plus", ["none", "none"], 1.0), &["models[0]", "data: PATH"]);
    let union = regression("regmean_plus", [inside; 2], 1.0) + "tokenizer_source: base\n";
    refuses(union, &["regmean_plus", "base's tokens"]);
    let slices = "merge_method: regmean\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n";
    refuses(slices.to_owned(), &["slices", "regmean takes whole models"]);

    place.write("recipe.yaml", regression("regmean_plus", [inside; 2], 1.0));
    place.refuses(&["merge", "recipe.yaml", "out", "-q", "--shard", "1/2"], &["in one run", "--shard"]);
    let config = fs::read_to_string(place.path("base/config.json")).unwrap();
    for name in ["base", "a", "b"] {
        place.write(&format!("{name}/config.json"), config.replace("\"bert\"", "\"mamba\""));
    }
    place.refuses(&["merge", "recipe.yaml", "out", "-q", "--dry-run"], &["mamba"]);
}

fn regression(method: &str, [a, b]: [&str; 2], alpha: f64) -> String {
    format!(
        "merge_method: {method}\nbase_model: base\nmodels:\n  - {{model: a, calibration: {a}}}\n  - {{model: b, calibration: {b}}}\n\
         parameters: {{alpha: {alpha}}}\nout_dtype: float32\n"
    )
}

fn is_of_block(name: &str, index: usize) -> bool {
    let index = index.to_string();
    name.split('.').any(|part| part == index)
}

/// Relative, of all values.
fn distance(got: &Tensor, want: &Tensor) -> f64 {
    let square = |v: f64| v * v;
    let pairs = || got.values().into_iter().zip(want.values()).map(|(g, w)| (f64::from(g), f64::from(w)));
    let (error, size): (f64, f64) =
        pairs().fold((0.0, 0.0), |(e, s), (g, w)| (e + square(g - w), s + square(w)));
    (error / size.max(f64::MIN_POSITIVE)).sqrt()
}

/// Takes out of a calibration whose inputs they are.
fn without_fingerprint(path: &Path) {
    let mut metadata = TensorFile::open(path).unwrap().metadata().clone();
    metadata.remove("fingerprint");
    let tensors: Tensors = read_tensors(path).into_iter().collect();
    write_tensors(path, &tensors, &metadata.into_iter().collect());
}

#[test]
fn a_recipe_cuts_texts_as_capture_does() {
    let place = Place::new();
    place.model("base", "bert", 0);
    place.model("a", "bert", 1);
    place.ids("ids.safetensors", &IDS);
    place.succeeds(&[
        "capture",
        "a",
        "--data",
        "ids.safetensors",
        "--max-length",
        "2",
        "-o",
        "a.calib",
        "-q",
    ]);
    let merged = |name: &str, calibration: &str| {
        let recipe = format!(
            "merge_method: esm\nbase_model: base\nmodels:\n  - {{model: a, calibration: {calibration}}}\n\
             parameters: {{alpha: 0.7}}\n"
        );
        place.write("recipe.yaml", recipe);
        place.succeeds(&["merge", "recipe.yaml", name, "-q"]);
        fs::read(place.path(name).join("model.safetensors")).unwrap()
    };
    let cut = merged("cut", "{data: ids.safetensors, max_length: 2}");
    assert!(cut == merged("file", "a.calib"));
    assert!(cut != merged("whole", "{data: ids.safetensors}"));
    let none =
        fs::read_to_string(place.path("recipe.yaml")).unwrap().replace("{data", "{max_length: 0, data");
    place.write("recipe.yaml", none);
    place.refuses(&["merge", "recipe.yaml", "none", "-q"], &["max_length", "at least one token"]);
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
fn inputs_in_f16_are_those_in_f32_rounded() {
    let place = Place::new();
    place.model("a", "llama", 1);
    place.ids("ids.safetensors", &IDS);
    for (out, flag) in [("wide.safetensors", None), ("half.safetensors", Some("--f16"))] {
        let arguments = ["capture", "a", "--data", "ids.safetensors", "-o", out, "-q"];
        place.succeeds(&[&arguments[..], flag.as_slice()].concat());
    }
    let input = "layers.1.mlp.down_proj.weight.input";
    let (wide, half) =
        (read_tensors(&place.path("wide.safetensors")), read_tensors(&place.path("half.safetensors")));
    assert_eq!((wide[input].dtype, half[input].dtype), (Stored::F32, Stored::F16));
    assert_eq!(half[input], Tensor::float(Dtype::F16, &wide[input].shape, &wide[input].values()));
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
    let weight: Vec<f32> = (0..32).map(|i| (i as f32).sin()).collect();
    let task = |labels: &[u8], classes: usize| {
        Tensors::from([
            ("test.input_ids".to_owned(), ids(&IDS)),
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
    capture("images", "photos", &["broken.png", "not an image", "replace it"]);
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

    let mut masked = Tensors::from([("input_ids".to_owned(), ids(&IDS))]);
    masked.insert("attention_mask".to_owned(), ids(&[&[1, 1, 1, 0], &[0, 0, 0, 0], &[1, 0, 0, 0]]));
    write_tensors(&place.path("masked.safetensors"), &masked, &BTreeMap::new());
    capture("text", "masked.safetensors", &["sample 1", "all padding"]);
    place.ids("negative.safetensors", &[&[3, -1]]);
    capture("text", "negative.safetensors", &["`input_ids`", "negative"]);
    let pixels = Tensor::float(Dtype::F32, &[1, 3, 5, 5], &[0.0; 75]);
    let small = Tensors::from([("pixel_values".to_owned(), pixels)]);
    write_tensors(&place.path("small.safetensors"), &small, &BTreeMap::new());
    capture("images", "small.safetensors", &["5 x 5", "the model takes"]);
    let other = Tensors::from([("weights".to_owned(), Tensor::float(Dtype::F32, &[1], &[0.0]))]);
    write_tensors(&place.path("other.safetensors"), &other, &BTreeMap::new());
    capture("text", "other.safetensors", &["no samples to calibrate with", "proxy.input_ids"]);
}

/// A tokenizer that knows whole words.
const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"good": 3, "bad": 4, "film": 5, "[UNK]": 1}, "unk_token": "[UNK]"}}"#;

#[test]
fn texts_are_tokenised_and_lines_that_cannot_be_are_named() {
    let place = Place::new();
    place.model("text", "bert", 0);
    place.write("text/tokenizer.json", TOKENIZER);
    let capture = |data: &str, out: &str, more: &[&str]| {
        place.succeeds(&[&["capture", "text", "--data", data, "-o", out, "-q"], more].concat());
        fs::read(place.path(out)).unwrap()
    };
    place.write("texts.txt", "good film\n\nbad film unheard\n");
    place.write("texts.jsonl", "{\"text\": \"good film\"}\n\"bad film unheard\"\n");
    let from_text = capture("texts.txt", "a.safetensors", &[]);
    assert!(from_text == capture("texts.jsonl", "b.safetensors", &[]), "a text is the same in a JSON line");
    let cut = Calibration::open(&place.path("a.safetensors")).unwrap();
    assert_eq!(cut.tokens("encoder.layer.0.attention.self.query.weight"), 5);
    capture("texts.txt", "c.safetensors", &["--max-length", "2"]);
    let cut = Calibration::open(&place.path("c.safetensors")).unwrap();
    assert_eq!(cut.tokens("encoder.layer.0.attention.self.query.weight"), 4);

    let refuses = |data: &str, words: &[&str]| {
        place.refuses(&["capture", "text", "--data", data, "-o", "out.safetensors", "-q"], words);
    };
    place.write("empty.txt", "\n \n");
    refuses("empty.txt", &["empty.txt", "no text"]);
    place.write("broken.jsonl", "{\"text\": \"good\"}\n{\"text\": \n");
    refuses("broken.jsonl", &["broken.jsonl", "line 2", "not valid JSON"]);
    place.write("keys.jsonl", "{\"words\": \"good\"}\n");
    refuses("keys.jsonl", &["keys.jsonl", "line 1", "no text", "sentence"]);
    place.write("latin.txt", [0xe9, 0x0a]);
    refuses("latin.txt", &["latin.txt", "UTF-8"]);
    place.write("long.txt", "good ".repeat(40));
    refuses("long.txt", &["40 tokens", "position table of 32"]);
    place.write("text/tokenizer.json", "{\"model\": 1}");
    refuses("texts.txt", &["tokenizer.json", "not a tokenizer"]);
}

#[test]
fn a_preprocessor_that_cannot_be_read_is_named() {
    let place = Place::new();
    place.model("images", "clip", 0);
    image::RgbImage::new(9, 9).save(place.path("a.png")).unwrap();
    fs::create_dir(place.path("photos")).unwrap();
    fs::rename(place.path("a.png"), place.path("photos/a.png")).unwrap();
    place.write("images/preprocessor_config.json", "{");
    let arguments = ["capture", "images", "--data", "photos", "-o", "out.safetensors", "-q"];
    place.refuses(&arguments, &["preprocessor_config.json", "not valid JSON"]);
    place.write(
        "images/preprocessor_config.json",
        "{\"size\": {\"shortest_edge\": 4}, \"do_center_crop\": false}",
    );
    place.refuses(&arguments, &["4 x 4", "the model takes"]);
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
    place
        .write("m/config.json", config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 9000000"));
    capture(&["num_hidden_layers", "9000000", "65536"]);
    place.write("m/config.json", config.replace("\"llama3\"", "\"spiral\""));
    capture(&["spiral"]);
    place.write("m/config.json", config.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": -4"));
    capture(&["num_attention_heads", "-4"]);
    place.write("m/config.json", "{");
    capture(&["config.json", "JSON"]);
    fs::remove_file(place.path("m/config.json")).unwrap();
    capture(&["config.json"]);
}
