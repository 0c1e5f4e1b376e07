//! The PyTorch hooks of docs/formats.md, taken out of the document and run: they write what `capture` writes, and it merges.
//!
//! `ESMERGE_PYTHON` names a Python with torch and transformers; without one the trial is ignored, by name.

#[path = "common/claims.rs"]
mod claims;
#[path = "common/devices.rs"]
mod devices;
#[path = "common/place.rs"]
mod place;
#[path = "common/synthetic.rs"]
mod synthetic;

use claims::Stated;
use esmerge::calibration::Calibration;
use esmerge::checkpoint::TensorFile;
use libtest_mimic::Trial;
use place::{IDS, Place};
use std::fs;
use std::path::Path;
use std::process::Command;
use synthetic::read_tensors;

fn main() {
    let python = python();
    let note = match &python {
        Ok(_) => String::new(),
        Err(reason) => format!(" [{reason}]"),
    };
    let ignored = python.is_err();
    let of_python = python.clone();
    let for_mamba = python.clone();
    let run = move || {
        python.as_deref().iter().for_each(|python| the_hooks_write_what_capture_writes(python));
        Ok(())
    };
    let run_on_others = move || {
        of_python.as_deref().iter().for_each(|python| the_hooks_find_the_names_of_files(python));
        Ok(())
    };
    let run_on_mamba = move || {
        for_mamba.as_deref().iter().for_each(|python| the_hooks_find_weights_before_their_inputs(python));
        Ok(())
    };
    let trials = vec![
        Trial::test(format!("the_hooks_write_what_capture_writes_and_it_merges{note}"), run)
            .with_ignored_flag(ignored),
        Trial::test(
            format!("the_hooks_find_mixtures_and_renamed_modules_by_the_names_of_files{note}"),
            run_on_others,
        )
        .with_ignored_flag(ignored),
        Trial::test(format!("the_hooks_find_weights_before_their_inputs{note}"), run_on_mamba)
            .with_ignored_flag(ignored),
        Trial::test("the_hooks_need_nothing_but_torch", || {
            the_hooks_need_nothing_but_torch();
            Ok(())
        }),
    ];
    claims::run(trials, Stated { cpu: 0, adapter: 0, besides: 4 });
}

/// A Python that can run the hooks on a model of transformers, or why there is none.
fn python() -> Result<String, &'static str> {
    let python = std::env::var("ESMERGE_PYTHON").map_err(|_| "ESMERGE_PYTHON is not set")?;
    let found = Command::new(&python).args(["-c", "import torch, transformers"]).output();
    match found {
        Ok(output) if output.status.success() => Ok(python),
        _ => Err("ESMERGE_PYTHON has no torch and transformers"),
    }
}

fn snippet() -> String {
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/formats.md")).unwrap();
    let after = docs.split_once("```python\n").unwrap().1;
    after.split_once("```").unwrap().0.to_owned()
}

fn the_hooks_need_nothing_but_torch() {
    let snippet = snippet();
    let imports: Vec<&str> = snippet.lines().filter(|line| line.contains("import ")).collect();
    assert_eq!(imports, ["import json, struct, torch, pathlib"]);
}

fn the_hooks_write_what_capture_writes(python: &str) {
    let place = Place::new();
    place.model("base", "llama", 0);
    place.ids("ids.safetensors", &IDS);
    for (expert, seed) in [("a", 1), ("b", 2)] {
        place.model(expert, "llama", seed);
        let script = format!(
            "import torch\nfrom transformers import AutoModel\nexpert = AutoModel.from_pretrained('{expert}').eval()\n\
             samples = [dict(input_ids=torch.tensor([ids])) for ids in {IDS:?}]\n{}",
            snippet()
        );
        place.write("script.py", script);
        let ran = Command::new(python).arg("script.py").current_dir(place.0.path()).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        fs::rename(place.path("cars.safetensors"), place.path(&format!("{expert}-hooks.safetensors")))
            .unwrap();
        let ours = format!("{expert}-ours.safetensors");
        place.succeeds(&["capture", expert, "--data", "ids.safetensors", "-o", &ours, "-q"]);
    }
    same_inputs(&place);
    same_merge(&place);
}

fn same_inputs(place: &Place) {
    let ours = Calibration::open(&place.path("a-ours.safetensors")).unwrap();
    let theirs = Calibration::open(&place.path("a-hooks.safetensors")).unwrap();
    for weight in ["self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"] {
        let weight = format!("layers.1.{weight}.weight");
        let read = |file: &Calibration| -> Vec<f32> {
            let (source, statistic) = file.source_of(&weight).unwrap();
            bytemuck::pod_collect_to_vec(&file.read(source, statistic).unwrap().bytes)
        };
        close(&read(&ours), &read(&theirs), 2e-5, &weight);
    }
}

/// Models whose modules are named or cut otherwise than their files, and mixtures, whose experts are no modules at all.
fn the_hooks_find_the_names_of_files(python: &str) {
    for (golden, class) in [
        ("vit", "ViTModel"),
        ("dinov2", "AutoModel"),
        ("gpt2", "GPT2Model"),
        ("mixtral", "AutoModel"),
        ("mixtral_in_one", "AutoModel"),
        ("qwen3_moe_in_one", "AutoModel"),
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model_goldens").join(golden);
        let (folder, place) = (folder.display().to_string(), Place::new());
        let script = format!(
            "import torch, transformers\nfrom safetensors.torch import load_file\n\
             expert = transformers.{class}.from_pretrained('{folder}', dtype=torch.float32).eval()\n\
             data = load_file('{folder}.safetensors')\n\
             if 'pixel_values' in data: samples = [dict(pixel_values=x[None]) for x in data['pixel_values']]\n\
             else: samples = [dict(input_ids=x[m.bool()][None]) for x, m in zip(data['input_ids'], data['attention_mask'])]\n{}",
            snippet()
        );
        place.write("script.py", script);
        let ran = Command::new(python).arg("script.py").current_dir(place.0.path()).output().unwrap();
        assert!(ran.status.success(), "{golden}: {}", String::from_utf8_lossy(&ran.stderr));
        let data = format!("{folder}.safetensors");
        place.succeeds(&["capture", &folder, "--data", &data, "-o", "ours.safetensors", "-q"]);
        let [ours, theirs] = ["ours", "cars"]
            .map(|file| Calibration::open(&place.path(&format!("{file}.safetensors"))).unwrap());
        let file = TensorFile::open(&place.path("ours.safetensors")).unwrap();
        let weights: Vec<&str> = file.tensors().keys().filter_map(|key| key.strip_suffix(".input")).collect();
        assert!(weights.len() > 4, "{golden}");
        for weight in weights {
            let [a, b] = [&ours, &theirs].map(|file| gram(file, weight));
            close(&b, &a, 1e-5, &format!("{golden} {weight}"));
        }
    }
}

/// Mamba's `dt_proj` is a layer whose module is never called: `W x^T` with what `x_proj` makes.
fn the_hooks_find_weights_before_their_inputs(python: &str) {
    let place = Place::new();
    let script = format!(
        "import torch, transformers\nfrom safetensors.torch import load_file\n\
         config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=20, state_size=4)\n\
         transformers.MambaModel(config).save_pretrained('expert')\n\
         expert = transformers.MambaModel.from_pretrained('expert').eval()\n\
         samples = [dict(input_ids=torch.tensor([[1, 2, 3, 4, 5]]))]\n{}\n\
         found, weights, at = load_file('cars.safetensors'), expert.state_dict(), 'layers.0.mixer.'\n\
         made = found[at + 'x_proj.weight.input'] @ weights[at + 'x_proj.weight'].T\n\
         taken = found[at + 'dt_proj.weight.input']\n\
         assert taken.shape == (5, config.time_step_rank), taken.shape\n\
         assert torch.allclose(made[:, :taken.shape[1]], taken, atol=1e-6)\n",
        snippet()
    );
    place.write("script.py", script);
    let ran = Command::new(python).arg("script.py").current_dir(place.0.path()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// `X^T X`, which does not tell in which order an expert saw its tokens.
fn gram(file: &Calibration, weight: &str) -> Vec<f32> {
    let (source, statistic) = file.source_of(weight).unwrap_or_else(|| panic!("no inputs of {weight}"));
    let values = file.read(source, statistic).unwrap();
    let x: Vec<f32> = bytemuck::pod_collect_to_vec(&values.bytes);
    let d = values.cols;
    let entry =
        |i: usize, j: usize| x.chunks(d).map(|t| f64::from(t[i]) * f64::from(t[j])).sum::<f64>() as f32;
    (0..d * d).map(|at| entry(at / d, at % d)).collect()
}

/// Tokens that differ by rounding alone give models that do, too.
fn same_merge(place: &Place) {
    let merged = |by: &str| {
        let expert = |e: &str| format!("  - {{model: {e}, calibration: {e}-{by}.safetensors}}\n");
        let recipe = format!(
            "merge_method: esm\nbase_model: base\nmodels:\n{}{}parameters: {{alpha: 1, accuracy: exact}}\n",
            expert("a"),
            expert("b")
        );
        place.write(&format!("{by}.yaml"), recipe);
        place.succeeds(&["merge", &format!("{by}.yaml"), by, "-q"]);
        read_tensors(&place.path(by))
    };
    let (ours, theirs) = (merged("ours"), merged("hooks"));
    assert!(ours.keys().eq(theirs.keys()));
    for (name, tensor) in &ours {
        close(&tensor.values(), &theirs[name].values(), 1e-3, name);
    }
}

fn close(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= tolerance * largest, "{what}: off by {worst:e} of {largest}");
}
