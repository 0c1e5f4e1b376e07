//! Every elementwise method through the program: small models on disk, on the CPU and on every adapter, in one file or in slabs.

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::checkpoint::Stored;
use esmerge::method::table::{Base, Kind};
use esmerge::method::{Description, methods};
use std::collections::BTreeMap;
use synthetic::{FC1, Family, NORM, QUERY, Tensor, base, expert, read_tensors};

fn elementwise() -> impl Iterator<Item = &'static Description> {
    methods().filter(|method| matches!(method.kind, Kind::Elementwise { .. }))
}

/// A recipe of a method with the experts that it takes.
fn recipe(method: &Description, parameters: &str) -> String {
    let experts = ["cars", "birds"].into_iter().take(method.models.1.max(1));
    let models: String = experts.map(|name| format!("  - model: experts/{name}\n")).collect();
    let base = if matches!(method.base, Base::Origin { .. }) { "base_model: base\n" } else { "" };
    let lines: String = parameters.lines().map(|line| format!("  {line}\n")).collect();
    format!("merge_method: {}\n{base}models:\n{models}parameters:\n{lines}", method.name)
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let sum =
        |f: &dyn Fn(f64, f64) -> f64| -> f64 { a.iter().zip(b).map(|(&a, &b)| f(a.into(), b.into())).sum() };
    (sum(&|a, b| (a - b).powi(2)) / sum(&|_, b| b * b).max(f64::MIN_POSITIVE)).sqrt()
}

fn assert_close(got: &BTreeMap<String, Tensor>, want: &BTreeMap<String, Tensor>, tolerance: f64, what: &str) {
    assert!(got.keys().eq(want.keys()));
    for (name, tensor) in got.iter().filter(|(_, t)| t.dtype != Stored::I64) {
        let error = distance(&tensor.values(), &want[name].values());
        assert!(error <= tolerance, "{what}: {name}: {error:e}");
    }
}

#[test]
fn every_method_merges_on_every_device_to_the_same_model() {
    let family = Family::new();
    for method in elementwise() {
        family.write("recipe.yaml", recipe(method, method.example));
        let here = family.merged(&[]);
        let moved = base(Dtype::F32).iter().any(|(name, tensor)| here[name] != *tensor);
        assert!(moved || method.name == "arcee_fusion", "{}", method.name);
        for device in adapters() {
            let _ = std::fs::remove_dir_all(family.path("out"));
            let run = family.esmerge(&["merge", "recipe.yaml", "out", "-q", "--device", &device]);
            assert!(
                run.status.success(),
                "{} on {device}: {}",
                method.name,
                String::from_utf8_lossy(&run.stderr)
            );
            assert_close(
                &read_tensors(&family.path("out")),
                &here,
                2e-6,
                &format!("{} on {device}", method.name),
            );
        }
    }
}

#[test]
fn the_last_step_follows_esm_too() {
    let family = Family::new();
    let recipe = |parameters: &str| {
        let model = |name: &str| {
            format!("  - {{model: experts/{name}, calibration: calibration/{name}.safetensors}}\n")
        };
        format!(
            "merge_method: esm\nbase_model: base\nmodels:\n{}{}parameters: {{alpha: 0.8{parameters}}}\n",
            model("cars"),
            model("birds")
        )
    };
    let merged = |parameters: &str| {
        family.write("recipe.yaml", recipe(parameters));
        family.merged(&[])
    };
    let plain = merged("");
    let (svc, boost) = (merged(", calibrate: svc"), merged(", calibrate: {boost: 0.5}"));
    for mended in [&svc, &boost] {
        assert!(mended[FC1] != plain[FC1] && mended[QUERY] != plain[QUERY]);
        assert!(mended[NORM] == plain[NORM], "vectors have no spectrum");
    }
    // all singular values are there already
    assert_close(&merged(", calibrate: {boost: 1.0}"), &plain, 1e-5, "nothing to raise");
}

/// `--device` of every adapter of this machine.
fn adapters() -> Vec<String> {
    let wanted = std::env::var("ESMERGE_DEVICE").unwrap_or_default();
    let listed = pollster::block_on(esmerge::backend::gpu::Gpu::list());
    let name = |name: &str| {
        format!("gpu:{}", name.split('(').next().unwrap_or_default().trim().trim_end_matches(" Device"))
    };
    listed
        .iter()
        .map(|a| name(&a.name))
        .filter(|name| wanted.is_empty() || name.to_lowercase().starts_with(&wanted))
        .collect()
}

#[test]
fn merging_one_model_alone_or_with_itself_gives_that_model() {
    let family = Family::new();
    let cars: BTreeMap<_, _> = expert(1, Dtype::F32).into_iter().collect();
    for method in ["linear", "karcher", "multislerp", "nuslerp", "model_stock", "ties", "sce", "ram"] {
        let method = esmerge::method::table::find(method).unwrap();
        let twice = recipe(method, method.example).replace("experts/birds", "experts/cars\n    name: again");
        family.write("recipe.yaml", twice.replace("density: 0.2", "density: 1"));
        let tolerance = if method.name == "ram" || method.name == "sce" { 1e-5 } else { 1e-6 };
        let merged = family.merged(&[]);
        if method.name != "sce" {
            assert_close(&merged, &cars, tolerance, method.name);
        }
    }
    family.write(
        "recipe.yaml",
        "merge_method: ties\nbase_model: base\nmodels: [{model: experts/cars}]\nparameters: {density: 1, lambda: 0.5}\n",
    );
    let ties = family.merged(&[]);
    family.write(
        "recipe.yaml",
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: experts/cars}]\nparameters: {lambda: 0.5}\n",
    );
    assert_close(&ties, &family.merged(&[]), 1e-7, "ties of one model at density 1 is task arithmetic");
    family.write("recipe.yaml", "merge_method: passthrough\nmodels: [{model: experts/cars}]\n");
    assert!(family.merged(&[]).iter().all(|(name, t)| *t == cars[name]));
}

#[test]
fn gradients_and_filters_reach_their_tensors() {
    let family = Family::new();
    family.write(
        "recipe.yaml",
        "\
merge_method: slerp
base_model: base
models:
  - model: base
  - model: experts/cars
parameters:
  t:
    - {filter: self_attn, value: [0, 1]}
    - {filter: mlp, value: 0}
    - {value: 1}
",
    );
    let merged = family.merged(&[]);
    let (base, cars) = (base(Dtype::F32), expert(1, Dtype::F32));
    let later = QUERY.replace("layers.0", "layers.1");
    let is = |name: &str, whole: &synthetic::Tensors| {
        distance(&merged[name].values(), &whole[name].values()) < 1e-6
    };
    assert!(is(QUERY, &base) && is(&later, &cars), "the gradient goes from the base to the expert");
    assert!(is(FC1, &base) && is(NORM, &cars));
}

#[test]
fn ties_over_the_whole_model_keeps_a_share_of_all_its_differences() {
    let family = Family::new();
    family.write(
        "recipe.yaml",
        "merge_method: ties\nbase_model: base\nmodels: [{model: experts/cars}]\nparameters: {density: 0.25, scope: model}\n",
    );
    let (merged, base, cars) = (family.merged(&[]), base(Dtype::F32), expert(1, Dtype::F32));
    let mut kept = Vec::new();
    let mut left = Vec::new();
    for (name, tensor) in merged.iter().filter(|(_, t)| t.dtype != Stored::I64) {
        for ((m, b), c) in tensor.values().iter().zip(base[name].values()).zip(cars[name].values()) {
            if *m != b { kept.push((c - b).abs()) } else { left.push((c - b).abs()) }
        }
    }
    let n = kept.len() + left.len();
    assert_eq!(kept.len(), n / 4 + 1, "the threshold itself is kept");
    let (least, most) =
        (kept.iter().copied().fold(f32::MAX, f32::min), left.iter().copied().fold(0.0, f32::max));
    assert!(least >= most, "{least} {most}");
}

#[test]
fn kept_deltas_and_sixteen_bit_files_go_through_every_method() {
    let family = Family::new();
    for method in elementwise() {
        family.write("recipe.yaml", recipe(method, method.example));
        let plain = family.merged(&[]);
        let _ = std::fs::remove_file(family.path("kept.safetensors"));
        assert_close(&family.merged(&["--keep-delta", "kept.safetensors"]), &plain, 1e-6, method.name);
    }
    family.write_model("base", &base(Dtype::Bf16));
    family.write_model("experts/cars", &expert(1, Dtype::Bf16));
    family.write_model("experts/birds", &expert(2, Dtype::Bf16));
    for method in elementwise() {
        family.write("recipe.yaml", recipe(method, method.example));
        let merged = family.merged(&[]);
        assert!(
            merged.values().all(|t| t.dtype == Stored::BF16 || t.dtype == Stored::I64),
            "{}",
            method.name
        );
    }
}

#[test]
fn chance_depends_on_the_seed_and_on_nothing_else() {
    let family = Family::new();
    for name in ["dare_linear", "della"] {
        let method = esmerge::method::table::find(name).unwrap();
        family.write("recipe.yaml", recipe(method, method.example));
        let once = family.merged(&[]);
        assert!(once == family.merged(&["--max-memory", "1MB"]), "{name}");
        assert!(once != family.merged(&["--seed", "1"]), "{name}");
    }
}

#[test]
fn methods_are_listed_and_explained_within_eighty_columns() {
    let family = Family::new();
    let says = |arguments: &[&str]| {
        let run = std::process::Command::new(env!("CARGO_BIN_EXE_esmerge"))
            .args(arguments)
            .env("COLUMNS", "80")
            .output()
            .unwrap();
        assert!(run.status.success(), "{arguments:?}");
        String::from_utf8(run.stdout).unwrap()
    };
    let all = says(&["methods"]);
    for method in methods() {
        assert!(all.contains(method.name), "{}", method.name);
        let text = says(&["methods", method.name]);
        for parameter in method.parameters {
            assert!(text.contains(parameter.name), "{}: {}", method.name, parameter.name);
        }
        for line in text.lines().chain(all.lines()) {
            assert!(line.chars().count() <= 80, "{}: {line}", method.name);
        }
    }
    let unknown = family.esmerge(&["methods", "tiez"]);
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn the_documents_count_the_methods_of_the_table() {
    let read = |path: &str| {
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    };
    let others = methods().filter(|method| !method.name.starts_with("esm")).count();
    assert!(read("README.md").contains(&format!("{others} other methods are here too")), "{others}");
    // the first version had three of them
    let more = others - ["linear", "task_arithmetic", "tsv_m"].len();
    assert!(read("CHANGELOG.md").contains(&format!("- {more} more methods")), "{more}");
    let list = read("docs/methods.md");
    for method in methods() {
        assert!(list.contains(&format!("`{}`", method.name)), "{} is not in docs/methods.md", method.name);
    }
}
