//! Recipes: what every key means, and that mergekit's files read the same.

use esmerge::backend::{Dtype, Polarity};
use esmerge::linalg::Accuracy;
use esmerge::method::{AlphaScope, Decomposition, Fusion, Preset, Scale, TaskNorm, table};
use esmerge::recipe::{
    Alpha, Calibration, Error, Esm, Method, Overrides, Place, Proxies, Rank, Recipe, Search, Source,
};
use std::path::{Path, PathBuf};

const MODELS: &str = "\
base_model: models/base
models:
  - model: models/cars
    calibration: calib/cars.safetensors
  - model: /abs/birds.delta.safetensors
    calibration: {data: proxies/birds, samples: 8, max_length: 64}
    name: songbirds
    task: tasks/birds.safetensors
";

fn parse(text: &str) -> Result<Recipe, Error> {
    Recipe::parse(text, Path::new("work/recipe.yaml"), &Overrides::default())
}

/// A recipe of merge_method esm with these lines under `parameters`.
fn esm(parameters: &str) -> Esm {
    let indented: String = parameters.lines().map(|line| format!("  {line}\n")).collect();
    let recipe = parse(&format!("merge_method: esm\n{MODELS}parameters:\n{indented}")).unwrap();
    match recipe.method {
        Method::Esm(esm) => *esm,
        other => panic!("{other:?}"),
    }
}

#[test]
fn paths_are_relative_to_the_recipe() {
    let recipe = parse(&format!("merge_method: esm\n{MODELS}parameters: {{alpha: 1}}\n")).unwrap();
    assert_eq!(recipe.base_model, PathBuf::from("work/models/base"));
    assert_eq!(recipe.models[0].source, Source::Checkpoint("work/models/cars".into()));
    assert_eq!(recipe.models[0].calibration, Calibration::File("work/calib/cars.safetensors".into()));
    assert_eq!(recipe.models[1].source, Source::Checkpoint("/abs/birds.delta.safetensors".into()));
    let proxies = Proxies { data: "work/proxies/birds".into(), samples: 8, max_length: Some(64) };
    let data = Calibration::Data(proxies);
    assert_eq!(recipe.models[1].calibration, data);
    assert_eq!(recipe.models[1].task, Some("work/tasks/birds.safetensors".into()));
}

#[test]
fn a_model_is_called_by_the_last_part_of_its_path_unless_it_has_a_name() {
    let recipe = parse(&format!("merge_method: esm\n{MODELS}parameters: {{alpha: 1}}\n")).unwrap();
    assert_eq!(recipe.models[0].name, "cars");
    assert_eq!(recipe.models[1].name, "songbirds");
    let name = |model: &str| {
        let text = format!("merge_method: task_arithmetic\nbase_model: b\nmodels:\n  - model: {model}\n");
        parse(&text).unwrap().models[0].name.clone()
    };
    assert_eq!(name("hub/Llama-3.2-3B"), "Llama-3.2-3B");
    assert_eq!(name("{delta: d/trec.delta.safetensors}"), "trec");
    assert_eq!(name("d/trec.safetensors"), "trec");
}

#[test]
fn a_task_vector_has_two_spellings() {
    for model in ["{delta: d/x.safetensors}", "b+delta:d/x.safetensors"] {
        let text = format!("merge_method: linear\nbase_model: b\nmodels:\n  - model: {model}\n");
        assert_eq!(parse(&text).unwrap().models[0].source, Source::Delta("work/d/x.safetensors".into()));
    }
    let other = "merge_method: linear\nbase_model: b\nmodels:\n  - model: c+delta:d/x.safetensors\n";
    assert_eq!(parse(other).unwrap_err().key(), "models[0].model");
}

#[test]
fn the_defaults_are_the_presets() {
    let plain = esm("alpha: 0.8");
    assert_eq!(plain.preset, Preset::Esm);
    assert_eq!(plain.options, Preset::Esm.options());
    assert_eq!(plain.alpha, Alpha::Number(0.8));
    assert_eq!(plain.alpha_scope, AlphaScope::Esm);
    assert_eq!((plain.rank, plain.fuse_qkv, plain.layers), (Rank::Auto, None, None));
    for (name, preset) in Preset::NAMES {
        let esm = esm(&format!("alpha: 1\npreset: {name}"));
        assert_eq!(esm.options, preset.options());
        assert_eq!(esm.alpha_scope, preset.alpha_scope());
    }
}

#[test]
fn every_switch_overrides_the_preset() {
    let all = esm("\
alpha: {search: consistency}
alpha_scope: all
preset: esm-cvpr
decomposition: svd
fusion: concat
rank: 12
eigen_weight_power: 0.3
gain: 1.5
mean_sigma: false
inter_task: off
inter_dimension: {exponent: 3, form: amplify}
inter_layer: {form: reversed}
inter_task_norm: code_padded
fuse_qkv: false
layers: ['a.*.weight', 'b']");
    assert!(matches!(all.alpha, Alpha::Search { by: Search::Consistency, .. }));
    assert_eq!(all.alpha_scope, AlphaScope::All);
    let options = all.options;
    assert_eq!((options.decomposition, options.fusion), (Decomposition::Svd, Fusion::Concat));
    assert_eq!((options.eigen_weight_power, options.gain, options.mean_sigma), (0.3, 1.5, false));
    assert_eq!(options.inter_task, None);
    assert_eq!(options.inter_dimension, Some(Scale { exponent: 3.0, polarity: Polarity::Amplify }));
    assert_eq!(options.inter_layer, Some(Scale { exponent: 2.0, polarity: Polarity::Reversed }));
    assert_eq!(options.inter_task_norm, TaskNorm::CodePadded);
    assert_eq!((all.rank, all.fuse_qkv), (Rank::Directions(12), Some(false)));
    assert_eq!(all.layers, Some(vec!["a.*.weight".to_owned(), "b".to_owned()]));
}

#[test]
fn a_switch_is_on_or_off_in_every_spelling_of_yaml() {
    for (text, on) in [("on", true), ("off", false), ("true", true), ("false", false), ("'on'", true)] {
        let scale = esm(&format!("alpha: 1\npreset: esm-lm\ninter_task: {text}")).options.inter_task;
        assert_eq!(scale, on.then(Scale::default), "{text}");
    }
    // (v / mean v)^0 = 1
    assert_eq!(esm("alpha: 1\ninter_task: {exponent: 0}").options.inter_task, None);
}

#[test]
fn a_rank_is_automatic_a_number_or_a_fraction_of_the_outputs() {
    let rank = |text: &str| esm(&format!("alpha: 1\nrank: {text}")).rank;
    assert_eq!(rank("auto").of(768, 8), 96);
    assert_eq!(rank("auto").of(10, 3), 3);
    assert_eq!(rank("auto").of(2, 3), 1);
    assert_eq!(rank("16").of(768, 8), 16);
    assert_eq!(rank("16").of(10, 8), 10);
    assert_eq!(rank("0.25").of(768, 8), 192);
    assert_eq!(rank("1.0").of(768, 8), 768);
    for bad in ["-1", "0", "1.5", "0.0", "all"] {
        let text = format!("merge_method: esm\n{MODELS}parameters:\n  alpha: 1\n  rank: {bad}\n");
        assert_eq!(parse(&text).unwrap_err().key(), "parameters.rank");
    }
}

#[test]
fn flags_override_the_recipe() {
    let text = format!("merge_method: esm\n{MODELS}parameters: {{alpha: 1, accuracy: fast, seed: 3}}\n");
    let recipe = parse(&text).unwrap();
    assert_eq!((recipe.accuracy, recipe.seed), (Accuracy::Fast, 3));
    let flags = Overrides {
        alpha: Some(0.25),
        accuracy: Some(Accuracy::Exact),
        seed: Some(9),
        ..Overrides::default()
    };
    let recipe = Recipe::parse(&text, Path::new("r.yaml"), &flags).unwrap();
    assert_eq!((recipe.accuracy, recipe.seed), (Accuracy::Exact, 9));
    assert!(matches!(recipe.method, Method::Esm(esm) if esm.alpha == Alpha::Number(0.25)));
    // a flag supplies what the recipe lacks
    let text = format!("merge_method: esm\n{MODELS}");
    assert!(parse(&text).is_err());
    assert!(Recipe::parse(&text, Path::new("r.yaml"), &flags).is_ok());
}

#[test]
fn accuracy_and_seed_may_stand_at_the_top() {
    let text = format!("merge_method: esm\n{MODELS}accuracy: exact\nseed: 5\nparameters: {{alpha: 1}}\n");
    let recipe = parse(&text).unwrap();
    assert_eq!((recipe.accuracy, recipe.seed), (Accuracy::Exact, 5));
    let twice = text + "  \n";
    let twice = twice.replace("{alpha: 1}", "{alpha: 1, seed: 6}");
    assert_eq!(parse(&twice).unwrap_err().key(), "parameters.seed");
}

#[test]
fn mergekits_linear_needs_no_base() {
    let recipe = parse(
        "\
models:
  - model: a
    parameters:
      weight: 1.0
  - model: b
    parameters:
      weight: 0.3
merge_method: linear
dtype: float16
",
    )
    .unwrap();
    assert_eq!(recipe.base_model, PathBuf::from("work/a"));
    assert_eq!(recipe.models.iter().map(|m| m.weight().unwrap()).collect::<Vec<_>>(), [1.0, 0.3]);
    assert_eq!((recipe.method.name(), recipe.method.alpha()), ("linear", &Alpha::Number(1.0)));
    // mergekit's dtype is also the type of the output
    assert_eq!(recipe.out_dtype, Some(Dtype::F16));
    assert_eq!(recipe.notes.len(), 1);
}

#[test]
fn mergekits_task_arithmetic_leaves_the_base_out() {
    let recipe = parse(
        "\
models:
  - model: base
  - model: a
    parameters: {weight: 0.5}
  - model: b
merge_method: task_arithmetic
base_model: base
parameters:
  weight: 0.2
  lambda: 0.7
  normalize: true
dtype: bfloat16
out_dtype: float32
",
    )
    .unwrap();
    assert_eq!(recipe.models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((recipe.method.name(), recipe.method.alpha()), ("task_arithmetic", &Alpha::Number(0.7)));
    let values = recipe.values(recipe.method.elementwise().unwrap(), "any", Place::default());
    assert_eq!(values.of_models("weight"), [0.5, 0.2], "a model's own weight, else that of all");
    assert!(values.is_on("normalize"));
    assert_eq!(recipe.out_dtype, Some(Dtype::F32));
}

#[test]
fn the_output_has_the_bases_type_unless_told_otherwise() {
    let out = |lines: &str| {
        let text = format!("merge_method: esm\n{MODELS}{lines}\nparameters: {{alpha: 1}}\n");
        parse(&text).unwrap().out_dtype
    };
    assert_eq!(out(""), None);
    assert_eq!(out("dtype: float32"), Some(Dtype::F32), "as in mergekit");
    assert_eq!(out("dtype: auto"), None);
    assert_eq!(out("out_dtype: bf16"), Some(Dtype::Bf16));
    assert_eq!(out("dtype: float32\nout_dtype: torch.float16"), Some(Dtype::F16));
}

#[test]
fn an_error_knows_its_key_and_line() {
    let error =
        parse(&format!("merge_method: esm\n{MODELS}parameters:\n  alpha: 1\n  gian: 2\n")).unwrap_err();
    assert_eq!((error.key(), error.line()), ("parameters.gian", Some(12)));
    let text = error.to_string();
    assert!(text.starts_with("work/recipe.yaml, line 12: `parameters.gian`: unknown key"), "{text}");
    assert!(text.contains("did you mean `gain`?"), "{text}");
}

#[test]
fn parameters_vary_with_the_layer_and_the_name_of_a_tensor() {
    let recipe = parse(
        "\
merge_method: ties
base_model: base
models:
  - model: a
    parameters:
      density: [1, 0.5, 0]
      weight: [{filter: mlp, value: 1}]
  - model: b
    parameters:
      density:
        - {filter: self_attn, value: [0.2, 0.4]}
        - {value: 0.9}
parameters:
  weight:
    - {filter: norm, value: 0.25}
    - 0.75
  lambda:
    - {filter: lm_head, value: 0.5}
    - 1.0
",
    )
    .unwrap();
    let tabled = recipe.method.elementwise().unwrap();
    let values =
        |tensor: &str, layer| recipe.values(tabled, tensor, Place { layer, layers: 5, ..Place::default() });
    let attention = values("layers.3.self_attn.q", Some(3));
    assert_eq!(attention.of_models("density"), [0.25, 0.2 + 0.75 * (0.4 - 0.2)]);
    assert_eq!(
        attention.of_models("weight"),
        [0.75, 0.75],
        "a filter that does not match falls back to the top"
    );
    assert_eq!(values("layers.3.mlp.up", Some(3)).of_models("weight"), [1.0, 0.75]);
    let head = values("lm_head", None);
    assert_eq!((head.of_models("density"), head.number("lambda")), (vec![1.0, 0.9], 0.5), "the first anchor");
    assert_eq!(values("norm", None).of_models("weight"), [0.25, 0.25]);
}

#[test]
fn every_method_of_the_table_is_read_with_its_example() {
    for method in esmerge::method::methods() {
        let (least, most) = method.models;
        let models = least.max(2).min(most);
        let calibration = match method.calibration {
            table::Calibration::OfMerged => "{data: d}",
            _ => "c",
        };
        let list: String =
            (0..models).map(|i| format!("  - model: m{i}\n    calibration: {calibration}\n")).collect();
        let lines: String = method.example.lines().map(|line| format!("  {line}\n")).collect();
        let text =
            format!("merge_method: {}\nbase_model: base\nmodels:\n{list}parameters:\n{lines}", method.name);
        let recipe = parse(&text).unwrap_or_else(|e| panic!("{text}\n{e}"));
        assert_eq!(recipe.method.name(), method.name);
        assert!(
            method.line.len() < 110 && !method.formula.is_empty() && !method.source.is_empty(),
            "{}",
            method.name
        );
    }
}

#[test]
fn a_parameter_outside_its_range_and_a_model_too_many_are_told() {
    let ties = |parameters: &str| {
        parse(&format!(
            "merge_method: ties\nbase_model: b\nmodels:\n  - model: m\nparameters: {parameters}\n"
        ))
        .unwrap_err()
    };
    let told = ties("{density: 1.5}");
    assert_eq!(told.key(), "parameters.density");
    assert!(told.to_string().contains("from 0 to 1"), "{told}");
    assert_eq!(ties("{density: [0.5, 2]}").key(), "parameters.density[1]");
    assert_eq!(ties("{scope: world}").key(), "parameters.scope");
    assert_eq!(ties("{normalize: [1, 0]}").key(), "parameters.normalize");
    let slerp = |models: &str, parameters: &str| {
        parse(&format!("merge_method: slerp\nbase_model: b\nmodels: {models}\nparameters: {parameters}\n"))
    };
    assert!(slerp("[{model: b}, {model: m}]", "{t: 0.5}").is_ok());
    let two = slerp("[{model: m}, {model: o}]", "{t: 0.5}").unwrap_err();
    assert!(two.to_string().contains("one model beside the base"), "{two}");
    assert_eq!(slerp("[{model: m}]", "{}").unwrap_err().key(), "parameters.t");
    let della = "merge_method: della\nbase_model: b\nmodels: [{model: m}]\nparameters: {density: 0.9}\n";
    assert!(parse(della).unwrap_err().to_string().contains("density + epsilon"));
    let slip = parse("merge_method: tiez\nbase_model: b\nmodels: [{model: m}]\n").unwrap_err();
    assert!(slip.to_string().contains("did you mean `ties`?"), "{slip}");
}
