//! Samples and models from strangers, through the program: what cannot be run is refused by name, before memory or hours are
//! spent on it, and nothing false is written.

#[path = "common/place.rs"]
mod place;
#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::checkpoint::Stored;
use place::{IDS, Place, ids};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use synthetic::{Tensor, Tensors, read_tensors, write_tensors};

const OUT: &str = "out.safetensors";

fn image(place: &Place, name: &str, width: u32, height: u32) {
    fs::create_dir_all(place.path(name).parent().unwrap()).unwrap();
    image::RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 37) as u8, (y * 91) as u8, 7]))
        .save(place.path(name))
        .unwrap();
}

/// A tower for images of 10 x 10 pixels in patches of 4, and its preprocessing.
fn tower(preprocessing: &str) -> Place {
    let place = Place::new();
    place.model("m", "clip", 0);
    place.write("m/preprocessor_config.json", preprocessing);
    place
}

fn capture_refuses(place: &Place, model: &str, data: &str, words: &[&str]) {
    place.refuses(&["capture", model, "--data", data, "-o", OUT, "-q"], words);
}

fn configure(place: &Place, model: &str, key: &str, value: Value) {
    let path = place.path(&format!("{model}/config.json"));
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn images_of_several_sizes_are_refused_by_their_names_and_sizes() {
    let place = tower(r#"{"do_resize": false}"#);
    image(&place, "i/a.png", 8, 8);
    image(&place, "i/b.png", 10, 9); // the same patches, but not the same image
    let words = ["i/a.png", "8 x 8", "i/b.png", "10 x 9", "crop_size"];
    capture_refuses(&place, "m", "i", &words);
    let recipe = "merge_method: esm\nbase_model: m\nmodels:\n  - {model: e, calibration: {data: i}}\n\
                  parameters: {alpha: 1}\n";
    place.model("e", "clip", 1);
    fs::copy(place.path("m/preprocessor_config.json"), place.path("e/preprocessor_config.json")).unwrap();
    place.write("r.yaml", recipe);
    place.refuses(&["merge", "r.yaml", "merged", "-q"], &words);
    place.write("m/preprocessor_config.json", r#"{"do_resize": false, "crop_size": 8}"#);
    place.succeeds(&["capture", "m", "--data", "i", "-o", OUT, "-q"]);
}

#[test]
fn pixels_of_a_task_that_come_out_at_another_size_are_named_by_their_sample() {
    let place = tower(r#"{"do_resize": false}"#);
    let pixels = Tensor { dtype: Stored::U8, shape: vec![1, 7, 9], bytes: vec![9; 63] };
    write_tensors(
        &place.path("t.safetensors"),
        &Tensors::from([("pixels".to_owned(), pixels)]),
        &BTreeMap::new(),
    );
    capture_refuses(
        &place,
        "m",
        "t.safetensors",
        &["t.safetensors", "sample 0 of `pixels`", "9 x 7", "the model takes"],
    );
}

#[test]
fn sizes_that_would_take_all_memory_are_refused_by_their_keys() {
    let place = tower("{}");
    image(&place, "i/a.png", 10, 10);
    for (settings, word) in [
        (r#"{"size": {"shortest_edge": 100000}}"#, "`size.shortest_edge`"),
        (r#"{"crop_size": 1000000}"#, "`crop_size`"),
        (r#"{"size": {"height": 12, "width": 12}}"#, "12 x 12"),
    ] {
        place.write("m/preprocessor_config.json", settings);
        fs::write(place.path("i/a.png"), "no image at all").unwrap(); // the settings are looked at first
        capture_refuses(&place, "m", "i", &["m/preprocessor_config.json", word]);
    }
    let synthetic = |words: &[&str], more: &[&str]| {
        place.refuses(&[&["capture", "m", "--synthetic", "-o", OUT, "-q"], more].concat(), words);
    };
    synthetic(&["4000000000", "synthetic", "fit"], &["--samples", "4000000000"]);
    for (key, value) in
        [("image_size", 20_000u64), ("image_size", u64::from(u32::MAX)), ("num_channels", 1 << 20)]
    {
        place.model("m", "clip", 0);
        configure(&place, "m", key, json!(value));
        synthetic(&[&format!("`{key}`"), &value.to_string()], &[]);
    }
}

#[test]
fn threads_of_pixels_and_halves_of_photographs_are_refused() {
    let place = tower(r#"{"size": {"shortest_edge": 10}, "crop_size": 10}"#);
    image(&place, "thin/a.png", 2, 300);
    capture_refuses(&place, "m", "thin", &["thin/a.png", "2 x 300", "100 times"]);
    image(&place, "cut/a.jpg", 64, 64);
    let whole = fs::read(place.path("cut/a.jpg")).unwrap();
    place.succeeds(&["capture", "m", "--data", "cut", "-o", "whole.safetensors", "-q"]);
    place.write("cut/a.jpg", &whole[..whole.len() * 2 / 3]);
    capture_refuses(&place, "m", "cut", &["cut/a.jpg", "breaks off"]);
}

#[test]
fn files_past_the_sizes_that_are_expected_are_refused_unread() {
    let place = tower("{}");
    let endless = |name: &str, mib: u64| {
        place.write(name, "");
        fs::File::options().write(true).open(place.path(name)).unwrap().set_len((mib << 20) + 1).unwrap();
    };
    endless("large/a.png", 256);
    capture_refuses(&place, "m", "large", &["large/a.png", "256 MiB"]);
    // the header of a BMP of 10,000 x 10,000 pixels, and nothing else
    let mut bmp = [&b"BM"[..], &[54, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0]].concat();
    bmp.extend([10_000u32.to_le_bytes(), 10_000u32.to_le_bytes()].concat());
    bmp.extend([&[1, 0, 24, 0][..], &[0; 24]].concat());
    place.write("wide/a.bmp", bmp);
    capture_refuses(&place, "m", "wide", &["wide/a.bmp", "10000 x 10000", "286 MiB", "256 MiB"]);
    place.model("t", "bert", 0);
    place.write("t/tokenizer.json", TOKENIZER);
    endless("texts.txt", 256);
    capture_refuses(&place, "t", "texts.txt", &["texts.txt", "256 MiB"]);
    place.write("line.txt", "good ".repeat(210_000));
    capture_refuses(&place, "t", "line.txt", &["line.txt", "line 1", "1024 KiB"]);
    place.write("foreign.txt", "good\nfilm unheard\n");
    place.write("t/tokenizer.json", TOKENIZER.replace("\"[UNK]\": 1", "\"[UNK]\": 77"));
    capture_refuses(&place, "t", "foreign.txt", &["foreign.txt", "line 2", "t/tokenizer.json", "id 77"]);
    endless("t/tokenizer.json", 128);
    place.write("texts.txt", "good");
    capture_refuses(&place, "t", "texts.txt", &["t/tokenizer.json", "128 MiB"]);
}

#[cfg(unix)]
#[test]
fn links_in_circles_end_and_fifos_are_refused() {
    use std::os::unix::fs::symlink;
    let place = tower("{}");
    image(&place, "i/a.png", 10, 10);
    for link in ["b", "c"] {
        symlink(".", place.path("i").join(link)).unwrap();
    }
    image(&place, "elsewhere/d.png", 10, 10);
    symlink(place.path("elsewhere"), place.path("i/e")).unwrap();
    let said = place.succeeds(&["capture", "m", "--data", "i", "-o", OUT]);
    assert!(said.contains("of 2 samples"), "the image itself, and that behind a link: {said}");
    let fifo =
        |path: &Path| std::process::Command::new("mkfifo").arg(path).status().is_ok_and(|s| s.success());
    if fifo(&place.path("i/z.png")) {
        capture_refuses(&place, "m", "i", &["i/z.png", "not a regular file"]);
    }
    place.model("t", "bert", 0);
    place.write("t/tokenizer.json", TOKENIZER);
    if fifo(&place.path("t.txt")) {
        capture_refuses(&place, "t", "t.txt", &["t.txt", "not a regular file"]);
    }
}

#[test]
fn values_that_are_not_finite_stop_every_command_with_model_and_layer() {
    let place = Place::new();
    place.model("m", "bert", 1);
    let broken: Tensors = read_tensors(&place.path("m"))
        .into_iter()
        .map(|(name, tensor)| {
            let grow = if name == "encoder.layer.0.intermediate.dense.weight" { 1e38 } else { 1.0 };
            let values: Vec<f32> = tensor.values().iter().map(|v| v * grow).collect();
            (name, Tensor::float(Dtype::F32, &tensor.shape, &values))
        })
        .collect();
    place.model("base", "bert", 0);
    fs::remove_file(place.path("m/model.safetensors")).unwrap();
    write_tensors(&place.path("m/model.safetensors"), &broken, &BTreeMap::new());
    let labels = Tensor { dtype: Stored::U8, shape: vec![IDS.len()], bytes: vec![0, 1, 1] };
    let tensors = Tensors::from([
        ("test.input_ids".to_owned(), ids(&IDS)),
        ("proxy.input_ids".to_owned(), ids(&IDS)),
        ("val.input_ids".to_owned(), ids(&IDS)),
        ("val.labels".to_owned(), labels.clone()),
        ("test.labels".to_owned(), labels),
        ("head.weight".to_owned(), Tensor::float(Dtype::F32, &[2, 16], &[0.5; 32])),
    ]);
    write_tensors(&place.path("t.safetensors"), &tensors, &BTreeMap::new());
    let words = ["m: ", "`encoder.layer.", "float32"];
    capture_refuses(&place, "m", "t.safetensors", &words);
    place.refuses(&["eval", "m", "--task", "t.safetensors", "-q"], &words);
    for search in ["accuracy", "consistency"] {
        place.write(
            "r.yaml",
            format!(
                "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - {{model: m, task: t.safetensors}}\n\
                 parameters: {{alpha: {{search: {search}}}}}\n"
            ),
        );
        place.refuses(&["merge", "r.yaml", "merged", "-q"], &["`encoder.layer.", "float32"]);
    }
}

#[test]
fn a_capture_replaces_nothing_but_a_calibration() {
    let place = Place::new();
    place.model("m", "bert", 0);
    place.ids("ids.safetensors", &IDS);
    let capture = ["capture", "m", "--data", "ids.safetensors", "-q", "-o"];
    let weights = fs::read(place.path("m/model.safetensors")).unwrap();
    let into = |out: &'static str| [&capture[..], &[out]].concat();
    place.refuses(&into("m/model.safetensors"), &["m/model.safetensors", "no calibration file", "--force"]);
    assert!(fs::read(place.path("m/model.safetensors")).unwrap() == weights);
    place.refuses(&into("m"), &["m", "folder"]);
    place.refuses(&into("ids.safetensors/c"), &["ids.safetensors", "not a folder"]);
    place.succeeds(&into("made/for/it.safetensors"));
    place.succeeds(&into("made/for/it.safetensors"));
    place.write("note", "mine");
    place.succeeds(&[&into("note")[..], &["--force"]].concat());
    // a capture that fails leaves no folders behind
    let failing = ["capture", "m", "--data", "ids.safetensors", "-q", "--f16", "-o", "other/c.safetensors"];
    let path = place.path("m/model.safetensors");
    let mut large: Tensors = read_tensors(&path).into_iter().collect();
    let norm = "embeddings.LayerNorm.weight";
    large.insert(norm.to_owned(), Tensor::float(Dtype::F32, &[16], &[1e6; 16]));
    write_tensors(&path, &large, &BTreeMap::new());
    place.refuses(&failing, &["f16"]);
}

/// A tokenizer that knows whole words, and adds two.
const TOKENIZER: &str = r#"{"version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
    "stride": 9}, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a", "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "a", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"a": {"id": "a", "ids": [2], "tokens": ["a"]}}}, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"a": 2, "good": 3, "bad": 4, "film": 5, "[UNK]": 1}, "unk_token": "[UNK]"}}"#;

#[test]
fn a_tokenizer_that_would_panic_or_eat_memory_is_refused_by_name() {
    let place = Place::new();
    place.model("m", "bert", 0);
    place.write("t.txt", "good film bad film good\n");
    place.write("m/tokenizer.json", TOKENIZER);
    place.succeeds(&["capture", "m", "--data", "t.txt", "-o", OUT, "-q"]); // a stride past the length
    fs::remove_file(place.path(OUT)).unwrap();
    let cut = |length: &str| {
        ["capture", "m", "--data", "t.txt", "-q", "-o", OUT, "--max-length", length].map(String::from)
    };
    place.refuses(
        &cut("1").each_ref().map(String::as_str),
        &["m/tokenizer.json", "1 tokens", "2 special tokens"],
    );
    place.succeeds(&cut("2").each_ref().map(String::as_str));
    let sound: Value = serde_json::from_str(TOKENIZER).unwrap();
    let panics =
        json!({ "type": "BPE", "vocab": { "a": 0 }, "merges": [["a", "a"]], "end_of_word_suffix": "long" });
    for (key, value) in [
        ("pre_tokenizer", json!({ "type": "FixedLength", "length": 0 })),
        ("normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "" })),
        ("normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "/////////////////////w==" })),
        ("model", panics),
        ("decoder", json!({ "type": 3 })),
    ] {
        let mut tokenizer = sound.clone();
        tokenizer[key] = value;
        place.write("m/tokenizer.json", tokenizer.to_string());
        let words = ["m/tokenizer.json", "is not a tokenizer that can be used"];
        capture_refuses(&place, "m", "t.txt", &words);
    }
}

#[test]
fn a_sample_past_the_vocabulary_and_a_scale_that_is_none_name_their_file() {
    let place = Place::new();
    place.model("m", "bert", 0);
    let task = |ids: Tensor, scale: &str| {
        let labels = Tensor { dtype: Stored::U8, shape: vec![3], bytes: vec![0, 1, 1] };
        let tensors = Tensors::from([
            ("test.input_ids".to_owned(), ids),
            ("test.labels".to_owned(), labels),
            ("class_embeddings".to_owned(), Tensor::float(Dtype::F32, &[2, 16], &[0.5; 32])),
        ]);
        let metadata = BTreeMap::from([("logit_scale".to_owned(), scale.to_owned())]);
        write_tensors(&place.path("t.safetensors"), &tensors, &metadata);
    };
    let eval = ["eval", "m", "--task", "t.safetensors", "-q"];
    task(ids(&[&[7, 30], &[20, 4000], &[3, 9]]), "1");
    place.refuses(&eval, &["t.safetensors", "sample 1 of `test`", "id 4000"]);
    for scale in ["-20", "0", "nan", "inf", "abc"] {
        task(ids(&[&[7, 30], &[20, 4], &[3, 9]]), scale);
        place.refuses(&eval, &["t.safetensors", "logit_scale", scale]);
    }
    task(ids(&[&[7, 30], &[20, 4], &[3, 9]]), "20.5");
    place.succeeds(&eval);
}

/// A ViT merged by ESM++, whose modules transformers calls otherwise than its file.
fn routed() -> Place {
    let place = Place::new();
    let mut recipe = "merge_method: esm++\nbase_model: base\nmodels:\n".to_owned();
    place.model("base", "vit", 0);
    for (name, seed) in [("a", 1), ("b", 2)] {
        place.model(name, "vit", seed);
        place.succeeds(&[
            "capture",
            name,
            "--synthetic",
            "--samples",
            "3",
            "-o",
            &format!("{name}.calib"),
            "-q",
        ]);
        recipe += &format!("  - {{model: {name}, calibration: {name}.calib}}\n");
    }
    place.write("r.yaml", recipe + "parameters: {alpha: 1, rank: 4}\n");
    place.succeeds(&["merge", "r.yaml", "out", "-q"]);
    image(&place, "i/a.png", 30, 20);
    place
}

const ROUTE: [&str; 6] = ["route", "out", "--data", "i", "--json", "-q"];

/// Changes the factors of an adapter by their keys.
fn change_adapter(place: &Place, task: &str, change: impl Fn(String, Tensor) -> (String, Tensor)) {
    let path = place.path(&format!("out/adapters/{task}/adapter_model.safetensors"));
    let tensors: Tensors = read_tensors(&path).into_iter().map(|(key, tensor)| change(key, tensor)).collect();
    write_tensors(&path, &tensors, &BTreeMap::new());
}

#[test]
fn adapters_are_read_by_the_names_of_modules_and_of_weights() {
    let place = routed();
    let keys = read_tensors(&place.path("out/adapters/a/adapter_model.safetensors"));
    assert!(
        keys.contains_key("base_model.model.layers.0.attention.q_proj.lora_A.weight"),
        "{:?}",
        keys.keys()
    );
    let before = place.succeeds(&ROUTE);
    let renames = [
        (".layers.", ".encoder.layer."),
        (".attention.q_proj", ".attention.attention.query"),
        (".attention.k_proj", ".attention.attention.key"),
        (".attention.v_proj", ".attention.attention.value"),
        (".mlp.fc1", ".intermediate.dense"),
    ];
    for task in ["a", "b"] {
        change_adapter(&place, task, |key, tensor| {
            (renames.iter().fold(key, |key, (from, to)| key.replace(from, to)), tensor)
        });
    }
    assert_eq!(place.succeeds(&ROUTE), before);
}

#[test]
fn adapters_of_no_rank_and_factors_that_are_not_shared_are_refused() {
    let place = routed();
    change_adapter(&place, "b", |key, mut tensor| {
        if key.ends_with("attention.v_proj.lora_A.weight") {
            tensor.bytes[0] ^= 1;
        }
        (key, tensor)
    });
    place.refuses(&ROUTE, &["adapters/b/adapter_model.safetensors", "different factors A", "merge again"]);
    for task in ["a", "b"] {
        change_adapter(&place, task, |key, mut tensor| {
            let rank = usize::from(!key.contains("lora_A"));
            tensor.shape[rank] = 0;
            (key, Tensor { bytes: Vec::new(), ..tensor })
        });
    }
    place.refuses(&ROUTE, &["adapters/a/adapter_model.safetensors", "merge again"]);
}
