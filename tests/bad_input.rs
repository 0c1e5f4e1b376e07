//! Whatever is wrong with a file, a flag or a recipe: one paragraph that says what, where and what to do, the documented
//! exit code, and nothing left behind.

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::checkpoint::Stored;
use std::collections::BTreeMap;
use std::fs;
use std::process::Output;
use synthetic::{FC1, Family, NORM, QUERY, RECIPE, Tensor, Tensors, WIDTH, base, expert, write_tensors};

/// Exit code of errors in the command line and in the recipe.
const USAGE: i32 = 2;
/// Of all others.
const OTHER: i32 = 1;

/// The program refuses: exit code, words in its message, and the folder as it was.
fn refuses(family: &Family, arguments: &[&str], code: i32, words: &[&str]) {
    let before = family.files();
    let Output { status, stdout, stderr } = family.esmerge(arguments);
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert_eq!(stdout, "");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
    let errors = stderr.matches("error: ").count();
    assert_eq!(errors, 1, "one error is told: {stderr}");
    assert!(!stderr.trim_end().contains("\n\n") || code == USAGE, "one paragraph: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(family.files(), before, "nothing is left behind");
}

fn merge_refuses(family: &Family, code: i32, words: &[&str]) {
    refuses(family, &["merge", "recipe.yaml", "out", "-q", "--device", "cpu"], code, words);
}

fn recipe_refuses(from: &str, to: &str, words: &[&str]) {
    let family = Family::new();
    assert!(RECIPE.contains(from));
    family.write("recipe.yaml", RECIPE.replace(from, to));
    merge_refuses(&family, USAGE, &[&["recipe.yaml"], words].concat());
}

fn change(family: &Family, model: &str, mut tensors: Tensors, name: &str, tensor: Tensor) {
    tensors.insert(name.to_owned(), tensor);
    family.write_model(model, &tensors);
}

fn with_value(name: &str, index: usize, value: f32) -> Tensor {
    let tensor = &expert(1, Dtype::F32)[name];
    let mut values = tensor.values();
    values[index] = value;
    Tensor::float(Dtype::F32, &tensor.shape, &values)
}

// ---- the recipe ----

#[test]
fn a_wrong_key_is_named_with_its_line_and_the_nearest_known_one() {
    recipe_refuses("base_model:", "base_modle:", &["line 2", "`base_modle`", "did you mean `base_model`?"]);
    recipe_refuses(
        "  alpha: 0.5",
        "  alhpa: 0.5",
        &["line 9", "`parameters.alhpa`", "did you mean `alpha`?"],
    );
    let wrong = "calibrations: calibration/cars.safetensors";
    let words = ["line 5", "`models[0].calibrations`", "did you mean `calibration`?"];
    recipe_refuses("calibration: calibration/cars.safetensors", wrong, &words);
}

#[test]
fn a_missing_key_is_named() {
    recipe_refuses("merge_method: esm\n", "", &["`merge_method`", "missing", "task_arithmetic"]);
    recipe_refuses("base_model: base\n", "", &["`base_model`", "missing"]);
    recipe_refuses("  alpha: 0.5", "  gain: 2", &["`parameters.alpha`", "ViT-B/16 0.84", "RoBERTa 2.8"]);
    recipe_refuses("parameters:\n  alpha: 0.5\n", "", &["`parameters.alpha`", "missing"]);
    recipe_refuses(
        "    calibration: calibration/birds.safetensors\n",
        "",
        &["`models[1]`", "calibration: none"],
    );
}

#[test]
fn a_wrong_value_is_named() {
    recipe_refuses("alpha: 0.5", "alpha: strong", &["`parameters.alpha`", "a number", "`strong`"]);
    recipe_refuses("alpha: 0.5", "alpha: .nan", &["`parameters.alpha`", "finite"]);
    recipe_refuses("merge_method: esm", "merge_method: fusion", &["`merge_method`", "`fusion`", "tsv_m"]);
    recipe_refuses("  alpha: 0.5", "  alpha: 0.5\n  rank: 0", &["`parameters.rank`"]);
    recipe_refuses(
        "  alpha: 0.5",
        "  alpha: 0.5\n  preset: esm-pepar",
        &["`parameters.preset`", "esm-paper"],
    );
    recipe_refuses("  alpha: 0.5", "  alpha: 0.5\n  inter_task: maybe", &["`parameters.inter_task`", "`on`"]);
    recipe_refuses("parameters:", "dtype: int8\nparameters:", &["`dtype`", "float16"]);
    recipe_refuses("models:\n", "models: 3\nmodel:\n", &["`model`"]);
    recipe_refuses(
        "birds.safetensors",
        "birds.safetensors\n    weight: 2",
        &["`models[1].weight`", "takes no weights"],
    );
}

#[test]
fn an_adapter_that_is_none_is_named() {
    recipe_refuses("experts/birds", "experts/birds+lora", &["`models[1].model`", "lora does not exist"]);
    recipe_refuses("experts/birds", "experts/birds+experts/cars", &["experts/cars is no adapter"]);
    recipe_refuses("experts/birds", "nowhere+lora", &["`models[1].model`", "no model `nowhere`"]);
}

#[test]
fn a_search_of_alpha_needs_labelled_samples() {
    let family = Family::new();
    family.write("recipe.yaml", RECIPE.replace("alpha: 0.5", "alpha: {search: accuracy}"));
    merge_refuses(&family, USAGE, &["`models[0].task`", "missing", "labelled"]);
}

#[test]
fn two_experts_of_one_name_are_refused() {
    recipe_refuses("experts/birds", "experts/cars", &["`models[1]`", "`cars`", "name"]);
}

#[test]
fn a_calibration_for_some_experts_only_is_refused() {
    recipe_refuses("calibration/birds.safetensors", "none", &["`cars`", "`birds`", "every model"]);
}

#[test]
fn a_pattern_that_matches_nothing_is_named() {
    let layers = "  alpha: 0.5\n  layers: ['*.mlp.fc1.weight', '*.mpl.fc2.weight']";
    recipe_refuses("  alpha: 0.5", layers, &["`parameters.layers[1]`", "*.mpl.fc2.weight"]);
}

#[test]
fn a_recipe_that_is_not_yaml_is_refused() {
    let family = Family::new();
    for text in
        ["models: [", "- a\n- b\n", "", "merge_method: esm\nmerge_method: esm\n", "\t: x", "a: &a [*a]"]
    {
        family.write("recipe.yaml", text);
        merge_refuses(&family, USAGE, &["recipe.yaml"]);
    }
    family.write("recipe.yaml", [0xff, 0xfe, 0x00]);
    merge_refuses(&family, USAGE, &["recipe.yaml"]);
}

#[test]
fn a_missing_recipe_is_a_usage_error() {
    let family = Family::new();
    refuses(&family, &["merge", "resipe.yaml", "out"], USAGE, &["resipe.yaml", "cannot be read"]);
}

#[test]
fn parameters_of_another_method_are_refused_by_name() {
    let family = Family::new();
    family.write("recipe.yaml", RECIPE.replace("merge_method: esm", "merge_method: linear") + "  gain: 2\n");
    merge_refuses(&family, USAGE, &["`parameters.gain`", "linear has no such parameter", "esm"]);
}

// ---- the command line ----

#[test]
fn wrong_flags_are_usage_errors() {
    let family = Family::new();
    let with = |flags: &[&'static str]| [&["merge", "recipe.yaml", "out"], flags].concat();
    refuses(&family, &with(&["--device", "tpu"]), USAGE, &["tpu", "gpu:NAME"]);
    refuses(&family, &with(&["--accuracy", "perfect"]), USAGE, &["perfect", "balanced"]);
    refuses(&family, &with(&["--out-shard-size", "many"]), USAGE, &["many", "5GB"]);
    refuses(&family, &with(&["--alpha", "inf"]), USAGE, &["inf"]);
    refuses(&family, &with(&["--devise", "cpu"]), USAGE, &["--devise", "--device"]);
    refuses(&family, &["merge", "recipe.yaml"], USAGE, &["<OUT>"]);
}

#[test]
fn a_gpu_that_is_not_there_is_named() {
    let family = Family::new();
    let merge = ["merge", "recipe.yaml", "out", "-q", "--device", "gpu:no such adapter"];
    refuses(&family, &merge, OTHER, &["no such adapter"]);
}

// ---- files ----

#[test]
fn missing_files_are_named() {
    let family = Family::new();
    fs::remove_file(family.path("calibration/birds.safetensors")).unwrap();
    merge_refuses(&family, OTHER, &["calibration/birds.safetensors", "does not exist"]);
    fs::remove_dir_all(family.path("experts/cars")).unwrap();
    merge_refuses(&family, OTHER, &["experts/cars", "does not exist"]);
    fs::remove_file(family.path("base/model.safetensors")).unwrap();
    merge_refuses(&family, OTHER, &["base", "model.safetensors"]);
}

#[test]
fn a_folder_without_safetensors_says_what_it_has() {
    let family = Family::new();
    let folder = family.path("experts/cars");
    fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
    merge_refuses(&family, OTHER, &["experts/cars", "pickles"]);
    fs::rename(folder.join("pytorch_model.bin"), folder.join("adapter_model.safetensors")).unwrap();
    merge_refuses(&family, OTHER, &["experts/cars", "LoRA adapter"]);
}

#[test]
fn a_truncated_file_is_named_wherever_it_ends() {
    let family = Family::new();
    let path = family.path("experts/birds/model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 5, 8, 100, 1000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        merge_refuses(&family, OTHER, &["experts/birds/model.safetensors", "not a valid safetensors file"]);
    }
    fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
    merge_refuses(&family, OTHER, &["experts/birds/model.safetensors", "appended"]);
}

/// A file with this header over 64 bytes of data.
fn file_with_header(header: &str) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 64]].concat()
}

#[test]
fn a_malformed_header_is_named() {
    let family = Family::new();
    let cases: [(&str, &str); 9] = [
        ("{", "JSON"),
        ("[1, 2]", "does not begin with `{`"),
        (r#"{"a": 3}"#, "`a`"),
        (r#"{"a": {"dtype": "F33", "shape": [16], "data_offsets": [0, 64]}}"#, "`a`"),
        (r#"{"a": {"dtype": "F32", "shape": [16], "data_offsets": [8, 72]}}"#, "`a`"),
        (r#"{"a": {"dtype": "F32", "shape": [17], "data_offsets": [0, 64]}}"#, "`a`"),
        (r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 64]}}"#, "`a`"),
        (r#"{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 64]}}"#, "`a`"),
        (
            r#"{"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},
                "b": {"dtype": "F32", "shape": [12], "data_offsets": [16, 64]}}"#,
            "`b`",
        ),
    ];
    for (header, word) in cases {
        family.write("experts/cars/model.safetensors", file_with_header(header));
        merge_refuses(
            &family,
            OTHER,
            &["experts/cars/model.safetensors", "not a valid safetensors file", word],
        );
    }
    family.write("experts/cars/model.safetensors", [0xff; 64]);
    merge_refuses(&family, OTHER, &["experts/cars/model.safetensors", "not a valid safetensors file"]);
}

#[test]
fn a_shard_index_must_fit_its_shards() {
    let family = Family::new();
    let folder = family.path("experts/cars");
    fs::rename(folder.join("model.safetensors"), folder.join("part.safetensors")).unwrap();
    let index = |map: &str| family.write("experts/cars/model.safetensors.index.json", map);
    index(r#"{"weight_map": {"x": "gone.safetensors"}}"#);
    merge_refuses(&family, OTHER, &["model.safetensors.index.json", "gone.safetensors", "missing"]);
    index(r#"{"weight_map": {"x": "part.safetensors"}}"#);
    merge_refuses(&family, OTHER, &["model.safetensors.index.json", "`x`", "part.safetensors"]);
    index(r#"{"weight_map": {"x": "part.safetensors", "x": "other.safetensors"}}"#);
    merge_refuses(&family, OTHER, &["model.safetensors.index.json", "`x` is there twice"]);
    index(r#"{"weight_map": {"x": "../cars/part.safetensors"}}"#);
    merge_refuses(&family, OTHER, &["model.safetensors.index.json", "plain file name"]);
    index("{}");
    merge_refuses(&family, OTHER, &["model.safetensors.index.json", "weight_map"]);
}

#[test]
fn a_config_that_is_not_json_is_named() {
    let family = Family::new();
    family.write("base/config.json", "{");
    merge_refuses(&family, OTHER, &["base/config.json"]);
}

// ---- models that do not fit ----

#[test]
fn mismatched_shapes_name_the_model_and_the_tensor() {
    let family = Family::new();
    let narrow = Tensor::float(Dtype::F32, &[WIDTH, WIDTH], &[0.0; WIDTH * WIDTH]);
    change(&family, "experts/birds", expert(2, Dtype::F32), FC1, narrow);
    merge_refuses(&family, OTHER, &["`birds`", FC1, "[8, 8]", "[24, 8]"]);
}

#[test]
fn a_missing_tensor_is_named() {
    let family = Family::new();
    let mut tensors = expert(2, Dtype::F32);
    tensors.shift_remove(NORM);
    family.write_model("experts/birds", &tensors);
    merge_refuses(&family, OTHER, &["`birds`", NORM, "which the base has"]);
}

#[test]
fn a_type_that_cannot_be_merged_is_refused() {
    let family = Family::new();
    let double = Tensor { dtype: Stored::F64, shape: vec![WIDTH], bytes: vec![0; 8 * WIDTH] };
    change(&family, "experts/cars", expert(1, Dtype::F32), NORM, double);
    merge_refuses(&family, OTHER, &["experts/cars", NORM, "F64", "float32"]);
    let integers = Tensor { dtype: Stored::I32, shape: vec![WIDTH], bytes: vec![0; 4 * WIDTH] };
    change(&family, "experts/cars", expert(1, Dtype::F32), NORM, integers);
    merge_refuses(&family, OTHER, &["`cars`", NORM, "I32"]);
}

#[test]
fn a_task_vector_with_a_tensor_that_the_base_lacks_is_refused() {
    let family = Family::new();
    let tensor = Tensor::float(Dtype::F32, &[WIDTH], &[0.0; WIDTH]);
    let tensors = Tensors::from([("unknown.weight".to_owned(), tensor)]);
    write_tensors(&family.path("cars.safetensors"), &tensors, &BTreeMap::new());
    family.write("recipe.yaml", RECIPE.replace("model: experts/cars", "model: {delta: cars.safetensors}"));
    merge_refuses(&family, OTHER, &["`cars`", "`unknown.weight`", "the base lacks"]);
}

// ---- values ----

#[test]
fn nan_and_infinity_name_the_file_the_tensor_and_the_element() {
    let family = Family::new();
    change(&family, "experts/cars", expert(1, Dtype::F32), QUERY, with_value(QUERY, 11, f32::NAN));
    merge_refuses(&family, OTHER, &["experts/cars/model.safetensors", QUERY, "NaN at element 11"]);
    // in a tensor that is averaged in the second half of the merge
    change(&family, "experts/cars", expert(1, Dtype::F32), NORM, with_value(NORM, 3, f32::INFINITY));
    merge_refuses(&family, OTHER, &["experts/cars/model.safetensors", NORM, "an infinity at element 3"]);
    family.write_model("experts/cars", &expert(1, Dtype::F32));
    change(&family, "base", base(Dtype::F32), FC1, with_value(FC1, 0, f32::NEG_INFINITY));
    merge_refuses(&family, OTHER, &["base/model.safetensors", FC1, "an infinity at element 0"]);
}

#[test]
fn a_weight_that_overflows_the_output_type_is_named() {
    let family = Family::new();
    change(&family, "base", base(Dtype::F32), NORM, with_value(NORM, 2, 7e4));
    change(&family, "experts/cars", expert(1, Dtype::F32), NORM, with_value(NORM, 2, 7e4));
    change(&family, "experts/birds", expert(2, Dtype::F32), NORM, with_value(NORM, 2, 7e4));
    family.write("recipe.yaml", format!("{RECIPE}out_dtype: float16\n"));
    merge_refuses(&family, OTHER, &[NORM, "element 2", "float16", "out_dtype"]);
}

// ---- calibration ----

/// Rewrites a calibration file with other tensors or metadata.
fn recalibrate(family: &Family, edit: impl Fn(&mut Tensors, &mut BTreeMap<String, String>)) {
    let path = family.path("calibration/cars.safetensors");
    let mut tensors: Tensors = synthetic::read_tensors(&path).into_iter().collect();
    let file = esmerge::checkpoint::TensorFile::open(&path).unwrap();
    let mut metadata = file.metadata().clone();
    edit(&mut tensors, &mut metadata);
    write_tensors(&path, &tensors, &metadata);
}

#[test]
fn a_calibration_of_another_model_is_refused() {
    let family = Family::new();
    let other = esmerge::checkpoint::Checkpoint::open(&family.path("experts/birds")).unwrap();
    let print = esmerge::checkpoint::fingerprint(&other, [QUERY]).unwrap();
    family.calibrate("cars", 1, 20, Some(&print));
    let words =
        ["calibration/cars.safetensors", "does not fit", "experts/cars", "fingerprint", "another model"];
    merge_refuses(&family, OTHER, &words);

    family.calibrate("cars", 1, 20, None);
    recalibrate(&family, |tensors, _| {
        tensors.insert(format!("{FC1}.input"), Tensor::float(Dtype::F32, &[20, 9], &[1.0; 180]));
    });
    let words = ["calibration/cars.safetensors", "does not fit", FC1, "9 dimensions", "another model"];
    merge_refuses(&family, OTHER, &words);
}

#[test]
fn a_layer_without_calibration_is_named() {
    let family = Family::new();
    recalibrate(&family, |tensors, _| {
        tensors.shift_remove(&format!("{FC1}.input"));
    });
    merge_refuses(&family, OTHER, &["calibration/cars.safetensors", "`cars`", FC1, "no inputs"]);
}

#[test]
fn a_gram_matrix_without_its_mean_cannot_route() {
    let family = Family::new();
    family.write("recipe.yaml", RECIPE.replace("merge_method: esm", "merge_method: esm++"));
    recalibrate(&family, |tensors, _| {
        tensors.shift_remove(&format!("{FC1}.input"));
        let gram: Vec<f32> =
            (0..WIDTH * WIDTH).map(|i| if i % (WIDTH + 1) == 0 { 1.0 } else { 0.0 }).collect();
        tensors.insert(format!("{FC1}.gram"), Tensor::float(Dtype::F32, &[WIDTH, WIDTH], &gram));
    });
    let words = ["calibration/cars.safetensors", "`cars`", FC1, "not their mean", ".mean", "routed_layers"];
    merge_refuses(&family, OTHER, &words);
}

#[test]
fn nan_in_a_calibration_is_named() {
    let family = Family::new();
    recalibrate(&family, |tensors, _| {
        let mut values = vec![0.5; 20 * WIDTH];
        values[7] = f32::NAN;
        tensors.insert(format!("{FC1}.input"), Tensor::float(Dtype::F32, &[20, WIDTH], &values));
    });
    merge_refuses(
        &family,
        OTHER,
        &["calibration/cars.safetensors", &format!("{FC1}.input"), "NaN at element 7"],
    );
}

#[test]
fn a_calibration_that_breaks_its_format_is_refused() {
    type Edit = fn(&mut Tensors, &mut BTreeMap<String, String>);
    let cases: [(Edit, &str); 8] = [
        (|_, m| drop(m.remove("format")), "esmerge-calibration-1"),
        (|_, m| drop(m.insert("n".into(), "twenty".into())), "`n`"),
        (|_, m| drop(m.insert("n".into(), format!(r#"{{"{FC1}": 21}}"#))), "21 tokens"),
        (|_, m| drop(m.insert("alias".into(), r#"{"a": "b"}"#.into())), "`b`"),
        (|t, _| drop(t.insert("x.output".into(), Tensor::float(Dtype::F32, &[1], &[0.0]))), "`x.output`"),
        (|t, _| drop(t.insert("x.gram".into(), Tensor::float(Dtype::F32, &[1, 2], &[0.0; 2]))), "`x.gram`"),
        (
            |t, _| drop(t.insert("x.gram".into(), Tensor::float(Dtype::F32, &[1, 1], &[0.0]))),
            "number of tokens",
        ),
        (|t, _| drop(t.insert("x.mean".into(), Tensor::integers(&[1]))), "`x.mean`"),
    ];
    for (edit, word) in cases {
        let family = Family::new();
        recalibrate(&family, edit);
        merge_refuses(&family, OTHER, &["calibration/cars.safetensors", "esmerge-calibration-1", word]);
    }
}

// ---- the output ----

#[test]
fn an_output_whose_parent_is_a_file_is_refused() {
    let family = Family::new();
    family.write("file", "");
    for out in ["file/out", "file/deep/out"] {
        refuses(&family, &["merge", "recipe.yaml", out, "-q"], OTHER, &[out, "file is a file"]);
    }
}

#[test]
fn an_output_that_holds_something_is_refused() {
    let family = Family::new();
    fs::create_dir(family.path("out")).unwrap();
    family.write("out/precious", "");
    merge_refuses(&family, OTHER, &["out", "not empty"]);
    refuses(&family, &["merge", "recipe.yaml", "recipe.yaml"], OTHER, &["recipe.yaml", "exists"]);
}

#[test]
fn parents_made_for_an_output_that_failed_are_removed() {
    let family = Family::new();
    change(&family, "experts/cars", expert(1, Dtype::F32), NORM, with_value(NORM, 3, f32::NAN));
    refuses(&family, &["merge", "recipe.yaml", "new/deep/out", "-q", "--device", "cpu"], OTHER, &[NORM]);
}

#[test]
fn deltas_are_not_kept_over_a_file_or_inside_the_output() {
    let family = Family::new();
    let keep =
        |file: &'static str| ["merge", "recipe.yaml", "out", "-q", "--device", "cpu", "--keep-delta", file];
    refuses(&family, &keep("recipe.yaml"), OTHER, &["recipe.yaml", "exists already"]);
    refuses(&family, &keep("out/delta.safetensors"), OTHER, &["out/delta.safetensors", "output folder"]);
    refuses(&family, &keep("none/delta.safetensors"), OTHER, &["none/delta.safetensors", "does not exist"]);
}

// ---- rescale ----

#[test]
fn rescale_refuses_a_wrong_base_and_a_file_of_another_kind() {
    let family = Family::new();
    family.merged(&["--keep-delta", "delta.safetensors"]);
    let rescale = |file: &'static str, base: &'static str| {
        ["rescale", file, "--base", base, "--alpha", "1", "other", "-q"]
    };
    refuses(&family, &rescale("delta.safetensors", "experts/cars"), OTHER, &["experts/cars", "base model"]);
    refuses(&family, &rescale("gone.safetensors", "base"), OTHER, &["gone.safetensors", "does not exist"]);
    let model = "base/model.safetensors";
    refuses(&family, &rescale(model, "base"), OTHER, &[model, "esmerge-delta-1"]);
    refuses(&family, &["rescale", "delta.safetensors", "--base", "base", "other"], USAGE, &["--alpha"]);
}
