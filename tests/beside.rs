//! Files beside the weights, the names and the type of what comes out, and inputs that change while they are read.

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::checkpoint::TensorFile;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};
use synthetic::{Family, NORM, RECIPE, Tensor, Tensors, read_tensors, write_tensors};

const LINEAR: &str = "merge_method: linear\nbase_model: base\nmodels: [{model: experts/cars, weight: 3}, {model: experts/birds}]\n";

fn linear() -> Family {
    let family = Family::new();
    family.write("recipe.yaml", LINEAR);
    family
}

/// A successful merge's messages.
fn warnings(family: &Family, arguments: &[&str]) -> String {
    let _ = fs::remove_dir_all(family.path("out"));
    let merge = ["merge", "recipe.yaml", "out", "--device", "cpu"];
    let output = family.esmerge(&[&merge[..], arguments].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    stderr
}

fn refused(family: &Family, arguments: &[&str]) -> String {
    let output = family.merge(arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(!family.path("out").exists());
    String::from_utf8(output.stderr).unwrap()
}

// ---- inputs that change ----

type Change = fn(&Family, &[u8]);

#[test]
fn a_file_that_changes_after_it_was_opened_is_refused() {
    let changes: [(&str, Change); 4] = [
        ("replaced", |family, whole| {
            family.write("other", whole);
            fs::rename(family.path("other"), family.path("m.safetensors")).unwrap();
        }),
        ("overwritten", |family, whole| family.write("m.safetensors", whole)),
        ("grown", |family, whole| family.write("m.safetensors", [whole, b"more"].concat())),
        ("cut", |family, whole| family.write("m.safetensors", &whole[..whole.len() - 1])),
    ];
    for (what, change) in changes {
        let family = Family::new();
        let path = family.path("m.safetensors");
        write_tensors(&path, &synthetic::base(Dtype::F32), &BTreeMap::new());
        let past = SystemTime::now() - Duration::from_secs(60); // clocks of file systems are coarse
        fs::File::options().write(true).open(&path).unwrap().set_modified(past).unwrap();
        let file = TensorFile::open(&path).unwrap();
        file.read_values(NORM, 0..2).unwrap();
        change(&family, &fs::read(&path).unwrap());
        let error = file.read_values(NORM, 0..2).unwrap_err().to_string();
        assert!(error.contains("m.safetensors changed while it was being read"), "{what}: {error}");
    }
}

// ---- side files ----

#[test]
fn tokenizers_templates_code_and_terms_come_along_and_an_adapters_settings_do_not() {
    let family = linear();
    let files =
        ["source.spm", "bpe.codes", "prophetnet.tokenizer", "modeling_x.py", "LICENSE", "USE_POLICY.md"];
    files.iter().for_each(|name| family.write(&format!("base/{name}"), name));
    fs::create_dir(family.path("base/additional_chat_templates")).unwrap();
    family.write("base/additional_chat_templates/tool_use.jinja", "x");
    family.write("base/adapter_config.json", "{}");
    warnings(&family, &[]);
    for name in files {
        assert_eq!(fs::read_to_string(family.path(&format!("out/{name}"))).unwrap(), name);
    }
    assert!(family.path("out/additional_chat_templates/tool_use.jinja").exists());
    assert!(!family.path("out/adapter_config.json").exists());
}

#[cfg(unix)]
#[test]
fn what_cannot_or_must_not_be_copied_is_left_out_by_name_before_the_work() {
    use std::os::unix::fs::symlink;
    let family = linear();
    fs::create_dir(family.path("private")).unwrap();
    family.write("private/secret.json", "secret");
    family.write("base/real.txt", "real");
    symlink(family.path("private/secret.json"), family.path("base/tokenizer_config.json")).unwrap();
    symlink(family.path("private"), family.path("base/1_Pooling")).unwrap();
    symlink("nowhere", family.path("base/vocab.txt")).unwrap();
    symlink("real.txt", family.path("base/merges.txt")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(family.path("base/notes.json")).status().unwrap();
    assert!(fifo.success());
    symlink("/dev/zero", family.path("base/zero.txt")).unwrap();
    for arguments in [&["--dry-run"][..], &[]] {
        let said = warnings(&family, arguments);
        for name in ["`tokenizer_config.json`", "`1_Pooling`", "`vocab.txt`", "`notes.json`", "`zero.txt`"] {
            assert!(said.contains(name), "{name} is not in: {said}");
        }
    }
    assert_eq!(
        fs::read_to_string(family.path("out/merges.txt")).unwrap(),
        "real",
        "a link within the folder"
    );
    for name in ["tokenizer_config.json", "1_Pooling", "vocab.txt", "notes.json", "zero.txt"] {
        assert!(family.path(&format!("out/{name}")).symlink_metadata().is_err(), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn a_model_in_the_hub_cache_is_copied_whole_and_named_as_there() {
    use std::os::unix::fs::symlink;
    let family = linear();
    let repository = family.path("models--org--base");
    let snapshot = repository.join("snapshots/0123abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(repository.join("blobs")).unwrap();
    for (blob, name) in [("b1", "model.safetensors"), ("b2", "config.json")] {
        fs::rename(family.path(&format!("base/{name}")), repository.join("blobs").join(blob)).unwrap();
        symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    family.write(
        "recipe.yaml",
        LINEAR.replace("base_model: base", "base_model: models--org--base/snapshots/0123abc"),
    );
    assert_eq!(warnings(&family, &["--json"]).matches("warning").count(), 0);
    assert!(fs::symlink_metadata(family.path("out/config.json")).unwrap().is_file());
    let card = fs::read_to_string(family.path("out/README.md")).unwrap();
    assert!(card.contains("- \"org/base\"") && card.contains("| base | org/base |"), "{card}");
    assert!(card.contains("library_name: transformers"), "{card}");
    assert!(card.contains("cars (weight 3)"), "{card}");
}

#[test]
fn a_pointer_of_git_lfs_is_named_wherever_it_stands() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4999802720\n";
    for path in ["base/tokenizer.json", "experts/cars/model.safetensors"] {
        let family = linear();
        family.write(path, pointer);
        for arguments in [&["--dry-run"][..], &[]] {
            let stderr = refused(&family, arguments);
            assert!(stderr.contains(path) && stderr.contains("Git LFS"), "{stderr}");
        }
    }
}

#[test]
fn settings_as_python_writes_them_are_kept_and_tell_the_type_at_every_level() {
    let family = linear();
    let config = "{\"model_type\": \"mamba2\",\n  \"limit\": [0.0, Infinity], \"x\": NaN, \"torch_dtype\": \"float32\",\n  \
                  \"text_config\": {\"dtype\": \"float32\"}}";
    for model in ["base", "experts/cars", "experts/birds"] {
        family.write(&format!("{model}/config.json"), config);
    }
    warnings(&family, &[]);
    assert_eq!(fs::read_to_string(family.path("out/config.json")).unwrap(), config);
    family.write("recipe.yaml", format!("{LINEAR}out_dtype: bfloat16\n"));
    warnings(&family, &[]);
    let expected = config.replace("float32", "bfloat16");
    assert_eq!(fs::read_to_string(family.path("out/config.json")).unwrap(), expected);
}

// ---- modules ----

fn module(value: f32) -> Tensors {
    let tensor = |name: &str, shape: &[usize]| {
        let values = vec![value; shape.iter().product()];
        (name.to_owned(), Tensor::float(Dtype::F32, shape, &values))
    };
    Tensors::from([tensor("linear.weight", &[2, 3]), tensor("linear.bias", &[2])])
}

fn with_modules(models: &[(&str, f32)]) -> Family {
    let family = linear();
    family.write("base/modules.json", r#"[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]"#);
    fs::create_dir(family.path("base/1_Pooling")).unwrap();
    family.write("base/1_Pooling/config.json", "{}");
    for (model, value) in models {
        fs::create_dir(family.path(&format!("{model}/2_Dense"))).unwrap();
        family.write(&format!("{model}/2_Dense/config.json"), "{}");
        write_tensors(
            &family.path(&format!("{model}/2_Dense/model.safetensors")),
            &module(*value),
            &BTreeMap::new(),
        );
    }
    family
}

#[test]
fn a_module_with_weights_is_summed_as_other_tensors_are() {
    let family = with_modules(&[("base", 0.0), ("experts/cars", 1.0), ("experts/birds", 5.0)]);
    warnings(&family, &[]);
    let mean = |family: &Family| read_tensors(&family.path("out/2_Dense"))["linear.bias"].values();
    assert_eq!(mean(&family), [2.0, 2.0], "(3 * 1 + 1 * 5) / 4");
    for name in ["2_Dense/config.json", "1_Pooling/config.json", "modules.json"] {
        assert!(family.path(&format!("out/{name}")).exists(), "{name}");
    }
    let report: Value =
        serde_json::from_slice(&fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
    assert_eq!(
        (&report["modules"], &report["library_name"]),
        (&json!(["2_Dense"]), &json!("sentence-transformers"))
    );

    family.write("recipe.yaml", RECIPE); // esm: what it does not decompose is averaged, whatever alpha is
    warnings(&family, &[]);
    assert_eq!(mean(&family), [3.0, 3.0]);
}

#[test]
fn a_module_that_an_expert_lacks_is_the_bases_and_that_is_said() {
    let family = with_modules(&[("base", 0.0), ("experts/cars", 1.0)]);
    let said = warnings(&family, &[]);
    assert!(said.contains("2_Dense is the base's"), "{said}");
    assert_eq!(
        fs::read(family.path("out/2_Dense/model.safetensors")).unwrap(),
        fs::read(family.path("base/2_Dense/model.safetensors")).unwrap()
    );
    assert!(fs::read_to_string(family.path("out/README.md")).unwrap().contains("2_Dense is the base's"));
    assert!(warnings(&family, &["--dry-run"]).contains("2_Dense is the base's"));
}

// ---- names ----

#[test]
fn weights_have_the_name_that_loaders_of_the_base_look_for() {
    for (file, expected) in [
        ("diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("open_clip_model", "open_clip_model"),
        ("model.fp16", "model"),
        ("weights", "model"),
    ] {
        let family = linear();
        fs::rename(family.path("base/model.safetensors"), family.path(&format!("base/{file}.safetensors")))
            .unwrap();
        warnings(&family, &[]);
        assert!(family.path(&format!("out/{expected}.safetensors")).exists(), "{file}");
        warnings(&family, &["--out-shard-size", "1KB"]);
        let index = family.path(&format!("out/{expected}.safetensors.index.json"));
        let index: Value = serde_json::from_slice(&fs::read(index).unwrap()).unwrap();
        let shard = index["weight_map"][NORM].as_str().unwrap();
        assert!(
            shard.starts_with(&format!("{expected}-0")) && family.path(&format!("out/{shard}")).exists(),
            "{shard}"
        );
    }
}

#[test]
fn the_report_says_where_every_input_lay_and_the_card_does_not() {
    let family = linear();
    warnings(&family, &[]);
    let report: Value =
        serde_json::from_slice(&fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
    let inputs = report["inputs"].as_array().unwrap();
    assert_eq!(
        inputs.iter().map(|i| i["role"].as_str().unwrap()).collect::<Vec<_>>(),
        ["base", "expert", "expert"]
    );
    assert_eq!(inputs[1]["weight"], json!(3.0));
    for (input, name) in inputs.iter().zip(["base", "experts/cars", "experts/birds"]) {
        let path = family.path(name);
        assert!(input["path"].as_str().unwrap().ends_with(name), "{input}");
        let bytes = fs::metadata(path.join("model.safetensors")).unwrap().len();
        assert_eq!(input["files"][0]["bytes"], json!(bytes));
        assert_eq!(input["files"][0]["header_sha256"].as_str().unwrap().len(), 64);
    }
    let card = fs::read_to_string(family.path("out/README.md")).unwrap();
    assert!(!card.contains(family.folder.path().to_str().unwrap()), "{card}");
    let recipe = fs::read_to_string(family.path("out/recipe.yaml")).unwrap();
    assert!(recipe.starts_with("# Relative paths") && recipe.ends_with(LINEAR), "{recipe}");
}
