//! Small models on disk, to merge and to break.

#![allow(dead_code)] // each test binary uses some of these

use esmerge::backend::Dtype;
use esmerge::calibration::{Entry, Writer};
use esmerge::checkpoint::{Stored, TensorSpec, TensorWriter, stored};
use half::{bf16, f16};
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// Numbers between -1 and 1 that look random and are the same everywhere.
#[derive(Clone)]
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn take(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * self.next()).collect()
    }
}

/// A tensor in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: Stored,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn float(dtype: Dtype, shape: &[usize], values: &[f32]) -> Tensor {
        let bytes = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        };
        assert_eq!(values.len(), shape.iter().product::<usize>());
        Tensor { dtype: stored(dtype), shape: shape.to_vec(), bytes }
    }

    pub fn integers(values: &[i64]) -> Tensor {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor { dtype: Stored::I64, shape: vec![1, values.len()], bytes }
    }

    pub fn values(&self) -> Vec<f32> {
        match self.dtype {
            Stored::F32 => self.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Stored::F16 => self.bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Stored::BF16 => {
                self.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            other => panic!("{other} is not floating-point"),
        }
    }
}

pub type Tensors = IndexMap<String, Tensor>;

/// Writes one safetensors file, in the order given.
pub fn write_tensors(path: &Path, tensors: &Tensors, metadata: &BTreeMap<String, String>) {
    let spec = |(name, t): (&String, &Tensor)| TensorSpec {
        name: name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let _ = fs::remove_file(path);
    let mut writer = TensorWriter::create(path, &specs, metadata).unwrap();
    tensors.values().for_each(|t| writer.write(&t.bytes).unwrap());
    writer.finish().unwrap();
}

/// All tensors of a model, whatever files it is in.
pub fn read_tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let model = esmerge::checkpoint::Checkpoint::open(path).unwrap();
    let tensor = |name: &str| {
        let meta = model.get(name).unwrap();
        let bytes = model.read_bytes(name, 0..meta.bytes).unwrap();
        (name.to_owned(), Tensor { dtype: meta.dtype, shape: meta.shape.clone(), bytes })
    };
    model.names().map(tensor).collect()
}

pub const WIDTH: usize = 8;
pub const MLP: usize = 24;
pub const FC1: &str = "vision_model.encoder.layers.0.mlp.fc1.weight";
pub const FC2: &str = "vision_model.encoder.layers.1.mlp.fc2.weight";
pub const QUERY: &str = "vision_model.encoder.layers.0.self_attn.q_proj.weight";
pub const NORM: &str = "vision_model.encoder.layers.0.layer_norm1.weight";
pub const POSITIONS: &str = "vision_model.embeddings.position_ids";

/// A CLIP-like base with two blocks, two experts and their calibration, in a folder of its own.
pub struct Family {
    pub folder: TempDir,
}

impl Family {
    pub fn new() -> Family {
        let family = Family { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(family.path("calibration")).unwrap();
        family.write_model("base", &base(Dtype::F32));
        family.write_model("experts/cars", &expert(1, Dtype::F32));
        family.write_model("experts/birds", &expert(2, Dtype::F32));
        family.calibrate("cars", 1, 20, None);
        family.calibrate("birds", 2, 12, None);
        family.write("recipe.yaml", RECIPE);
        family
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    pub fn write(&self, relative: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(relative), text).unwrap();
    }

    pub fn write_model(&self, folder: &str, tensors: &Tensors) {
        let folder = self.path(folder);
        fs::create_dir_all(&folder).unwrap();
        write_tensors(&folder.join("model.safetensors"), tensors, &BTreeMap::new());
        fs::write(
            folder.join("config.json"),
            r#"{"model_type": "clip_vision_model", "torch_dtype": "float32"}"#,
        )
        .unwrap();
    }

    /// Writes the calibration of an expert.
    pub fn calibrate(&self, expert: &str, seed: u64, tokens: usize, fingerprint: Option<&str>) {
        let mut numbers = Numbers::new(100 + seed);
        let path = self.path(&format!("calibration/{expert}.safetensors"));
        let mut writer = Writer::create(&path, false).unwrap();
        for block in 0..2 {
            let name = |weight: &str| format!("vision_model.encoder.layers.{block}.{weight}.weight");
            for (weight, d_in) in [("self_attn.q_proj", WIDTH), ("mlp.fc1", WIDTH), ("mlp.fc2", MLP)] {
                let input = Some(numbers.take(tokens * d_in, 1.0));
                let shared = match weight {
                    "self_attn.q_proj" => vec![name("self_attn.k_proj"), name("self_attn.v_proj")],
                    _ => vec![],
                };
                let entry = Entry { tokens, d_in, input, gram: None, mean: None };
                writer.add(&name(weight), &entry, &shared).unwrap();
            }
        }
        writer.finish(4, fingerprint).unwrap();
    }

    /// Runs `esmerge merge recipe.yaml out` with more arguments, on the CPU.
    pub fn merge(&self, arguments: &[&str]) -> Output {
        self.esmerge(&[&["merge", "recipe.yaml", "out", "-q", "--device", "cpu"], arguments].concat())
    }

    /// Runs the program in the family's folder.
    pub fn esmerge(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_esmerge"))
            .args(arguments)
            .env_remove("ESMERGE_DEVICE")
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    /// Merges, and gives the tensors of the result.
    pub fn merged(&self, arguments: &[&str]) -> BTreeMap<String, Tensor> {
        let _ = fs::remove_dir_all(self.path("out"));
        let output = self.merge(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        read_tensors(&self.path("out"))
    }

    /// Every path below the folder, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        list(self.folder.path(), &mut files);
        files.sort();
        files
    }
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, files);
        }
        files.push(path);
    }
}

pub const RECIPE: &str = "\
merge_method: esm
base_model: base
models:
  - model: experts/cars
    calibration: calibration/cars.safetensors
  - model: experts/birds
    calibration: calibration/birds.safetensors
parameters:
  alpha: 0.5
";

/// The base's tensors.
pub fn base(dtype: Dtype) -> Tensors {
    let mut numbers = Numbers::new(7);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize]| {
        let values = numbers.take(shape.iter().product(), 1.0);
        tensors.insert(name, Tensor::float(dtype, shape, &values));
    };
    add("vision_model.embeddings.class_embedding".into(), &[WIDTH]);
    add("vision_model.embeddings.patch_embedding.weight".into(), &[WIDTH, 3, 2, 2]);
    add("vision_model.embeddings.position_embedding.weight".into(), &[5, WIDTH]);
    for block in 0..2 {
        let name = |rest: &str| format!("vision_model.encoder.layers.{block}.{rest}");
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            add(name(&format!("self_attn.{projection}.weight")), &[WIDTH, WIDTH]);
            add(name(&format!("self_attn.{projection}.bias")), &[WIDTH]);
        }
        add(name("layer_norm1.weight"), &[WIDTH]);
        add(name("mlp.fc1.weight"), &[MLP, WIDTH]);
        add(name("mlp.fc2.weight"), &[WIDTH, MLP]);
    }
    add("visual_projection.weight".into(), &[WIDTH, WIDTH]);
    tensors.insert(POSITIONS.into(), Tensor::integers(&[0, 1, 2, 3, 4]));
    tensors
}

/// The base's tensors, moved a little.
pub fn expert(seed: u64, dtype: Dtype) -> Tensors {
    let mut numbers = Numbers::new(seed);
    let mut moved = base(Dtype::F32);
    for tensor in moved.values_mut().filter(|t| t.dtype == Stored::F32) {
        let values: Vec<f32> = tensor.values().iter().map(|v| v + 0.1 * numbers.next()).collect();
        *tensor = Tensor::float(dtype, &tensor.shape, &values);
    }
    moved
}
