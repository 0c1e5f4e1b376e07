//! Weights that are stored as codes (8-bit and 4-bit floats, the blocks of GGUF) against what the formats' own libraries make of them, bit for bit
//! (`coded/generate.py`).

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::checkpoint::{Checkpoint, Stored};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use synthetic::{Family, Tensor, Tensors};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/coded")
}

/// The floats of a file, by name.
fn expected(file: &str) -> BTreeMap<String, Tensor> {
    let read = |file| synthetic::read_tensors(&folder().join(file));
    let all = read("expected.safetensors").into_iter().chain(read("mxfp4-expected.safetensors"));
    let of_file = |(name, tensor): (String, Tensor)| {
        Some((name.strip_prefix(file)?.strip_prefix('/')?.to_owned(), tensor))
    };
    all.filter_map(of_file).collect()
}

fn bits(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

#[test]
fn every_code_is_the_float_that_its_format_says() {
    for file in ["llama.gguf", "gemma.gguf", "fp8.safetensors", "mxfp4.safetensors"] {
        let model = Checkpoint::open(&folder().join(file)).unwrap();
        let expected = expected(file);
        assert!(!expected.is_empty());
        for (name, tensor) in &expected {
            let meta = model.get(name).unwrap_or_else(|| panic!("{file} lacks {name}"));
            assert_eq!((meta.dtype, &meta.shape), (Stored::F32, &tensor.shape), "{file} {name}");
            let n = meta.elements();
            let (all, wanted) = (model.read_values(name, 0..n).unwrap(), bits(&tensor.bytes));
            assert_eq!(bits(&all), wanted, "{file} {name}");
            // any part of it, also one that begins and ends within a block and a row
            for range in [1..n - 1, n / 3..n / 2 + 1, n - 1..n] {
                let part = model.read_values(name, range.clone()).unwrap();
                assert_eq!(bits(&part), wanted[range.clone()], "{file} {name} {range:?}");
            }
        }
        let others: Vec<&str> = model.names().filter(|name| !expected.contains_key(*name)).collect();
        let is_stored_as_floats = |name: &&str| name.ends_with("norm.weight") || name.ends_with("_bias");
        assert!(others.iter().all(is_stored_as_floats), "{file}: {others:?}");
    }
}

#[test]
fn a_merge_of_a_coded_base_and_a_coded_expert_is_one_of_floats() {
    let family = Family::new();
    let _ = fs::remove_dir_all(family.path("base"));
    fs::create_dir(family.path("base")).unwrap();
    fs::copy(folder().join("fp8.safetensors"), family.path("base/model.safetensors")).unwrap();
    let config = r#"{"model_type": "qwen3", "quantization_config": {"quant_method": "fp8"}, "torch_dtype": "bfloat16"}"#;
    family.write("base/config.json", config);
    let floats: Tensors = expected("fp8.safetensors").into_iter().collect();
    let mut whole = floats.clone();
    whole.insert("layers.0.norm.weight".to_owned(), Tensor::float(Dtype::F32, &[4], &[1.0; 4]));
    family.write_model("experts/cars", &whole);
    family.write("experts/cars/config.json", r#"{"model_type": "qwen3"}"#);
    family.write(
        "recipe.yaml",
        "merge_method: linear\nbase_model: base\nmodels: [{model: experts/cars}, {model: base}]\n\
         parameters: {weight: 0.5}\n",
    );
    // the expert has the base's floats, so that any mean of the two is the base in another type
    let recipe = fs::read_to_string(family.path("recipe.yaml")).unwrap();
    for (addition, dtype) in [("out_dtype: float32\n", Dtype::F32), ("", Dtype::Bf16)] {
        family.write("recipe.yaml", format!("{recipe}{addition}"));
        let merged = family.merged(&[]);
        for (name, tensor) in &floats {
            let wanted = Tensor::float(dtype, &tensor.shape, &tensor.values());
            assert_eq!((merged[name].dtype, &merged[name].shape), (wanted.dtype, &wanted.shape), "{name}");
            // a sum has no negative zeros
            assert!(merged[name].values() == wanted.values(), "{name}");
        }
        assert_eq!(merged.len(), floats.len() + 1, "scales are no tensors of the output");
    }
    let config = fs::read_to_string(family.path("out/config.json")).unwrap();
    assert!(!config.contains("quantization_config") && config.contains("qwen3"), "{config}");
}

#[test]
fn a_damaged_gguf_is_refused_by_what_is_wrong() {
    let whole = fs::read(folder().join("llama.gguf")).unwrap();
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("damaged.gguf");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Checkpoint::open(&path).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(open(&whole), Ok(()));
    let padding = 32; // behind the last tensor, which is smaller than that
    for end in (5..whole.len() - padding).step_by(7) {
        let error = open(&whole[..end]).unwrap_err();
        assert!(error.contains("GGUF"), "{end}: {error}");
    }
    // any byte of the header may be another one: an error or not, but no panic and no endless read
    for at in 4..1500.min(whole.len()) {
        let mut other = whole.clone();
        other[at] ^= 0xff;
        let _ = open(&other);
    }
    let version = [&whole[..4], &9u32.to_le_bytes(), &whole[8..]].concat();
    assert!(open(&version).unwrap_err().contains("version is 9"));
}
