//! mergekit's language through the program: slices, several documents, flags, and what `esmerge init` writes.

#[path = "common/place.rs"]
mod place;
#[path = "common/synthetic.rs"]
mod synthetic;

use place::Place;
use std::collections::BTreeMap;
use std::fs;
use synthetic::{Tensor, read_tensors};

/// A tiny Llama base and two experts.
fn models() -> Place {
    let place = Place::new();
    for (name, seed) in [("base", 0), ("a", 1), ("b", 2)] {
        place.model(name, "llama", seed);
    }
    place
}

fn merged(place: &Place, recipe: &str) -> BTreeMap<String, Tensor> {
    place.write("recipe.yaml", recipe);
    let _ = fs::remove_dir_all(place.path("out"));
    place.succeeds(&["merge", "recipe.yaml", "out", "-q"]);
    read_tensors(&place.path("out"))
}

fn layers(tensors: &BTreeMap<String, Tensor>) -> usize {
    let index = |name: &String| name.split('.').find_map(|part| part.parse::<usize>().ok());
    tensors.keys().filter_map(index).max().unwrap() + 1
}

#[test]
fn slices_are_put_one_after_another_and_the_config_follows() {
    let place = models();
    let (a, b) = (read_tensors(&place.path("a")), read_tensors(&place.path("b")));
    let n = layers(&a);
    let stacked = merged(
        &place,
        &format!(
            "merge_method: passthrough\nslices:\n  - sources: [{{model: a, layer_range: [0, {n}]}}]\n  - sources: [{{model: b, layer_range: [{}, {n}]}}]\n",
            n - 1
        ),
    );
    assert_eq!(layers(&stacked), n + 1);
    for (name, tensor) in &stacked {
        let last = format!(".{n}.");
        let (from, own) = match name {
            _ if name.contains(&last) => (&b, name.replace(&last, &format!(".{}.", n - 1))),
            _ if name.contains("embed") || name.contains("layers.") => (&a, name.clone()),
            _ => (&b, name.clone()), // what follows the layers
        };
        assert!(*tensor == from[&own], "{name}");
    }
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["num_hidden_layers"], n + 1);
}

#[test]
fn slices_of_a_base_and_a_model_merge_as_whole_models_do() {
    let place = models();
    let n = layers(&read_tensors(&place.path("a")));
    let whole = merged(
        &place,
        "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {density: [0.2, 0.8], weight: 0.7}\n",
    );
    let sources = |rest: &str| {
        let source = |name: &str| format!("{{model: {name}, layer_range: [0, {n}]{rest}}}");
        format!("[{}, {}, {{model: base, layer_range: [0, {n}]}}]", source("a"), source("b"))
    };
    let head = "merge_method: ties\nbase_model: base\n";
    let sliced = merged(
        &place,
        &format!(
            "{head}slices:\n  - sources: {}\nparameters: {{density: [0.2, 0.8], weight: 0.7}}\n",
            sources("")
        ),
    );
    assert!(sliced == whole);
    // a source's own parameters come first
    let own = ", parameters: {density: [0.2, 0.8], weight: 0.7}";
    let sliced = merged(
        &place,
        &format!(
            "{head}slices:\n  - sources: {}\n    parameters: {{density: 0.1}}\nparameters: {{weight: 3}}\n",
            sources(own)
        ),
    );
    assert!(sliced == whole);
}

#[test]
fn wrong_slices_are_refused_by_name() {
    let place = models();
    let refuses = |slices: &str, words: &[&str]| {
        place.write("recipe.yaml", format!("merge_method: passthrough\nslices: {slices}\n"));
        place.refuses(&["merge", "recipe.yaml", "out", "-q"], words);
    };
    refuses("[{sources: [{model: a, layer_range: [0, 99]}]}]", &["layer_range", "reaches past"]);
    refuses("[{sources: [{model: a, layer_range: [2, 1]}]}]", &["`slices[0].sources[0].layer_range`"]);
    refuses("[{sources: [{model: a}]}]", &["layer_range", "missing"]);
    refuses("[]", &["at least one slice"]);
    refuses("[{sources: [{model: a+b, layer_range: [0, 1]}]}]", &["a document of its own"]);
    refuses(
        "[{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]}]",
        &["takes 1 sources", "2 are given"],
    );
    place.write(
        "recipe.yaml",
        "merge_method: ties\nbase_model: base\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n",
    );
    place.refuses(&["merge", "recipe.yaml", "out", "-q"], &["the base model must be one of the sources"]);
    place.write("recipe.yaml", "merge_method: linear\nmodels: [{model: a}]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n");
    place.refuses(&["merge", "recipe.yaml", "out", "-q"], &["not both"]);
}

#[test]
fn a_later_document_takes_what_an_earlier_one_has_made() {
    let place = models();
    let first = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n";
    let mean = merged(&place, first);
    fs::rename(place.path("out"), place.path("mean")).unwrap();
    let second = "merge_method: slerp\nbase_model: base\nmodels: [{model: MEAN}]\nparameters: {t: 0.5}\n";
    let apart = merged(&place, &second.replace("MEAN", "mean"));
    fs::remove_dir_all(place.path("mean")).unwrap();
    let together = merged(&place, &format!("name: first\n{first}---\n{}", second.replace("MEAN", "first")));
    assert!(together == apart && together != mean);
    let left: Vec<_> = fs::read_dir(place.path(".")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 5, "base, a, b, recipe and out: {left:?}");
    let planned = place.succeeds(&["merge", "recipe.yaml", "--dry-run"]);
    assert!(planned.contains("tensors"), "{planned}");
    // an error in any document is told before the first is merged, by its line in the file
    place.write(
        "recipe.yaml",
        format!(
            "name: first\n{first}---\nmerge_method: slerp\nbase_model: base\nmodels: [{{model: first}}]\n"
        ),
    );
    fs::remove_dir_all(place.path("out")).unwrap();
    place.refuses(&["merge", "recipe.yaml", "out", "-q"], &["`parameters.t`"]);
}

#[test]
fn flags_of_mergekit_are_explained_and_change_nothing() {
    let place = models();
    let recipe = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n";
    let plain = merged(&place, recipe);
    fs::remove_dir_all(place.path("out")).unwrap();
    let run = place.esmerge(&[
        "merge",
        "recipe.yaml",
        "out",
        "--cuda",
        "--lazy-unpickle",
        "--copy-tokenizer",
        "--allow-crimes",
    ]);
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{said}");
    for flag in ["--cuda", "--lazy-unpickle", "--copy-tokenizer", "--allow-crimes"] {
        assert!(said.contains(flag), "{flag} is not explained in: {said}");
    }
    assert!(read_tensors(&place.path("out")) == plain);
}

#[test]
fn what_init_writes_is_a_recipe() {
    let place = models();
    let recipe = place.succeeds(&["init", "."]);
    assert!(recipe.contains("base_model: ./base") && recipe.contains("- model: ./a"), "{recipe}");
    let tensors = merged(&place, &recipe);
    assert!(tensors.keys().eq(read_tensors(&place.path("base")).keys()));
    place.refuses(&["init", "recipe.yaml"], &["no model in"]);
}

#[test]
fn the_tokenizer_is_the_bases_and_the_chat_template_what_is_asked_for() {
    let place = models();
    let recipe = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n";
    place.write("a/tokenizer_config.json", r#"{"chat_template": "{{ old }}", "model_max_length": 64}"#);
    merged(&place, &format!("{recipe}tokenizer_source: base\nchat_template: chatml\n"));
    assert!(fs::read_to_string(place.path("out/chat_template.jinja")).unwrap().contains("<|im_start|>"));
    let config = fs::read_to_string(place.path("out/tokenizer_config.json")).unwrap();
    assert!(config.contains("model_max_length") && !config.contains("old"), "{config}");
    merged(&place, &format!("{recipe}tokenizer: {{source: a}}\nchat_template: '{{{{ messages }}}}'\n"));
    assert_eq!(fs::read_to_string(place.path("out/chat_template.jinja")).unwrap(), "{{ messages }}");
    fs::remove_dir_all(place.path("out")).unwrap();
    for (more, words) in [
        ("tokenizer_source: union", &["no tokenizer.json"][..]),
        ("tokenizer: {source: c}", &["`tokenizer.source`", "`c`"]),
        ("tokenizer: {source: base, tokens: {x: {force: true}}}", &["`tokenizer.tokens.x`", "`source`"]),
        ("tokenizer: {source: base, pad_to_multiple_of: 0}", &["`tokenizer.pad_to_multiple_of`"]),
        ("tokenizer_source: base\ntokenizer: {source: base}", &["not both"]),
        ("chat_template: llama3", &["`chat_template`", "chatml"]),
    ] {
        place.write("recipe.yaml", format!("{recipe}{more}\n"));
        place.refuses(&["merge", "recipe.yaml", "out", "-q"], words);
    }
}

/// A tokenizer of words with these numbers.
fn words(place: &Place, model: &str, words: &[String]) {
    let vocabulary: Vec<String> =
        words.iter().enumerate().map(|(id, word)| format!("\"{word}\": {id}")).collect();
    let text = format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer":
        {{"type": "WhitespaceSplit"}}, "post_processor": null, "decoder": null, "model": {{"type": "WordLevel", "vocab": {{{}}},
        "unk_token": "w0"}}}}"#,
        vocabulary.join(", ")
    );
    place.write(&format!("{model}/tokenizer.json"), text);
}

#[test]
fn a_union_has_the_rows_of_every_models_tokens() {
    const TABLE: &str = "embed_tokens.weight";
    let place = models();
    let (base, a, b) =
        (read_tensors(&place.path("base")), read_tensors(&place.path("a")), read_tensors(&place.path("b")));
    let [rows, cols] = base[TABLE].shape[..] else { panic!("a table") };
    // a has a word of its own in the place of the base's last, b the base's words in another order
    let own: Vec<String> = (0..rows).map(|id| format!("w{id}")).collect();
    let mut of_a = own.clone();
    of_a[rows - 1] = "new".to_owned();
    let of_b: Vec<String> = own.iter().rev().cloned().collect();
    for (model, of_model) in [("base", &own), ("a", &of_a), ("b", &of_b)] {
        words(&place, model, of_model);
    }
    let recipe = "merge_method: linear\nbase_model: base\nmodels: [{model: base}, {model: a}, {model: b}]\ntokenizer: {source: union, \
                  pad_to_multiple_of: 8}\n";
    let made = merged(&place, recipe);
    let padded = (rows + 1).next_multiple_of(8);
    assert_eq!(made[TABLE].shape, [padded, cols]);
    let row =
        |of: &BTreeMap<String, Tensor>, row: usize| of[TABLE].values()[row * cols..(row + 1) * cols].to_vec();
    let mean = |rows: [Vec<f32>; 3]| -> Vec<f32> {
        (0..cols).map(|i| rows.iter().map(|row| row[i]).sum::<f32>() / 3.0).collect()
    };
    let close = |got: Vec<f32>, want: Vec<f32>, what: &str| {
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-6), "{what}: {got:?}, not {want:?}");
    };
    close(row(&made, 1), mean([row(&base, 1), row(&a, 1), row(&b, rows - 2)]), "a word of all");
    let last = rows - 1;
    close(
        row(&made, last),
        mean([row(&base, last), row(&base, last), row(&b, 0)]),
        "a word that a lacks is the base's there",
    );
    close(row(&made, rows), row(&a, last), "a word of one model is that model's in all");
    if padded > rows + 1 {
        let all = made[TABLE].values();
        let average = (0..cols)
            .map(|i| (0..=rows).map(|r| all[r * cols + i]).sum::<f32>() / (rows + 1) as f32)
            .collect();
        close(row(&made, rows + 1), average, "rows of no token are the mean of the others");
    }
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["vocab_size"], padded);
    let tokenizer: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("out/tokenizer.json")).unwrap()).unwrap();
    assert_eq!(tokenizer["added_tokens"][0]["content"], "new");
    assert_eq!(tokenizer["added_tokens"][0]["id"], rows);
    // the base's own words, in its order
    let of_base =
        merged(&place, "merge_method: linear\nmodels: [{model: base}, {model: b}]\ntokenizer_source: base\n");
    let half: Vec<f32> = row(&base, 2).iter().zip(row(&b, rows - 3)).map(|(x, y)| (x + y) / 2.0).collect();
    close(row(&of_base, 2), half, "the base's order");
    fs::remove_dir_all(place.path("out")).unwrap();
    place.write("recipe.yaml", recipe.replace("pad_to_multiple_of: 8", "tokens: {w1: {source: c}}"));
    place.refuses(&["merge", "recipe.yaml", "out", "-q"], &["`tokenizer.tokens.w1`"]);
    place.write("recipe.yaml", recipe);
    let far = r#"{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"w0": 0, "w1": 4000000000}, "unk_token": "w0"}}"#;
    let good = fs::read(place.path("base/tokenizer.json")).unwrap();
    place.write("base/tokenizer.json", far);
    place.refuses(&["merge", "recipe.yaml", "out", "-q"], &["tokenizer.json", "4000000001"]);
    place.write("base/tokenizer.json", good);
    place.refuses(&["merge", "recipe.yaml", "out", "-q", "--keep-delta", "d.safetensors"], &["vocabulary"]);
}

#[test]
fn a_model_with_an_adapter_may_stand_where_no_base_is_named() {
    let place = models();
    place.succeeds(&["extract", "a", "--base", "base", "--rank", "4", "-o", "adapter"]);
    place.succeeds(&[
        "apply",
        "b",
        "adapter",
        "-o",
        "applied",
        "--allow-mismatch",
        "base_model_name_or_path",
    ]);
    place.write("recipe.yaml", "merge_method: passthrough\nmodels: [{model: b+adapter}]\n");
    place.succeeds(&["merge", "recipe.yaml", "out", "-q", "--allow-mismatch", "base_model_name_or_path"]);
    assert!(read_tensors(&place.path("out")) == read_tensors(&place.path("applied")));
}

#[test]
fn one_module_is_the_whole_model() {
    let place = models();
    let plain = merged(&place, "merge_method: linear\nmodels: [{model: a}, {model: b}]\n");
    let module =
        merged(&place, "merge_method: linear\nmodules: {default: {models: [{model: a}, {model: b}]}}\n");
    assert!(plain == module);
}

#[test]
fn modules_have_parameters_of_their_own_or_are_the_bases() {
    let place = Place::new();
    for (name, seed) in [("base", 0), ("a", 1), ("b", 2)] {
        place.model(name, "t5", seed);
    }
    let plain = |a: &str, b: &str| {
        let recipe = "merge_method: task_arithmetic\nbase_model: base\nmodels:\n";
        format!(
            "{recipe}  - {{model: a, parameters: {{weight: {a}}}}}\n  - {{model: b, parameters: {{weight: {b}}}}}\n"
        )
    };
    let (encoder, decoder) =
        (merged(&place, &plain("0.5", "[0, 1]")), merged(&place, &plain("0.25", "0.75")));
    let base = read_tensors(&place.path("base"));
    let got = merged(
        &place,
        "merge_method: task_arithmetic\nbase_model: base\nparameters: {weight: 9}\nmodules:\n  encoder:\n    models:\n      \
         - {model: a, parameters: {weight: 0.5}}\n      - {model: b, parameters: {weight: [0, 1]}}\n  decoder:\n    parameters: {weight: \
         0.25}\n    models: [{model: b, parameters: {weight: 0.75}}, {model: a}]\n  shared: {models: [{model: base}]}\n",
    );
    for (name, tensor) in &got {
        let want = match name.split('.').next() {
            Some("encoder") => &encoder,
            Some("decoder") => &decoder,
            _ => &base,
        };
        assert!(*tensor == want[name], "{name}");
    }
    let report = fs::read_to_string(place.path("out/esmerge-report.json")).unwrap();
    assert!(report.contains("a module of the base alone"));

    let refuses = |modules: &str, words: &[&str]| {
        place.write("recipe.yaml", format!("merge_method: ties\nbase_model: base\nmodules:\n{modules}"));
        place.refuses(&["merge", "recipe.yaml", "other", "-q"], words);
    };
    let (both, shared) = ("models: [{model: a}, {model: b}]", "  shared: {models: [{model: base}]}\n");
    refuses(&format!("  encoder: {{{both}}}\n{shared}"), &["module `decoder`", "decoder, encoder, shared"]);
    refuses(
        &format!("  encoder: {{{both}}}\n  tower: {{{both}}}\n"),
        &["no module `tower`", "decoder, encoder, shared"],
    );
    refuses(
        &format!("  encoder: {{{both}}}\n  decoder: {{models: [{{model: a}}]}}\n{shared}"),
        &["modules.decoder.models", "other models", "weight: 0"],
    );
    refuses(
        &format!("  encoder: {{{both}}}\n  decoder: {{slices: []}}\n{shared}"),
        &["modules.decoder.slices", "whole models"],
    );
    refuses(shared, &["modules", "beside the base"]);
    refuses(&format!("  default: {{{both}}}\n{shared}"), &["no module `default`"]);
}
