//! Case files `esmerge-golden-1`: NAME.json describes, NAME.safetensors holds inputs and expected values.

use esmerge::backend::{Backend, Dtype, Result, Shape};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
pub struct Case {
    pub format: String,
    pub name: String,
    pub tasks: usize,
    pub tensors: BTreeMap<String, TensorInfo>,
    pub runs: Vec<Run>,
    #[serde(skip)]
    data: Vec<u8>,
}

#[derive(Deserialize)]
pub struct TensorInfo {
    pub shape: Vec<usize>,
    pub role: String,
    pub group: Option<String>,
    pub activations: Option<String>,
    pub n: Option<Vec<usize>>,
}

#[derive(Deserialize)]
pub struct Run {
    pub id: String,
    pub method: String,
    #[serde(default)]
    pub options: serde_json::Map<String, serde_json::Value>,
    pub alpha: Option<f64>,
    pub alpha_scope: Option<String>,
    pub fallback_polar_scale: Option<String>,
    pub expected: Vec<Expected>,
}

#[derive(Deserialize)]
pub struct Expected {
    pub key: String,
    pub compare: String,
    pub tol: Option<f64>,
    pub tol_gram: Option<f64>,
    pub input: Option<String>,
}

/// The JSON files of a folder, by name.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> =
        entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
    files.sort();
    assert!(!files.is_empty(), "no case file in {}", folder.display());
    files
}

impl Case {
    pub fn read(path: &Path) -> Case {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut case: Case =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(case.format, "esmerge-golden-1", "{}", path.display());
        case.data = std::fs::read(path.with_extension("safetensors"))
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        case
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.data).expect("a golden file is well formed")
    }

    /// Rows and columns of a stored tensor; a vector is one row.
    pub fn matrix_shape(&self, key: &str) -> (usize, usize) {
        let file = self.file();
        let view = file.tensor(key).unwrap_or_else(|e| panic!("{key}: {e}"));
        match *view.shape() {
            [] => (1, 1),
            [n] => (1, n),
            [m, n] => (m, n),
            ref other => panic!("{key}: shape {other:?}"),
        }
    }

    /// A stored tensor on the device, unpacked there.
    pub fn upload<B: Backend>(&self, backend: &B, key: &str) -> Result<B::Tensor> {
        let (rows, cols) = self.matrix_shape(key);
        let file = self.file();
        let view = file.tensor(key).expect("looked up before");
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            other => panic!("{key}: {other:?}"),
        };
        backend.unpack(Shape::matrix(rows, cols), dtype, view.data())
    }

    /// A stored `[batch, rows, cols]` tensor on the device.
    pub fn upload_batch<B: Backend>(&self, backend: &B, key: &str) -> Result<B::Tensor> {
        let file = self.file();
        let view = file.tensor(key).unwrap_or_else(|e| panic!("{key}: {e}"));
        let [batch, rows, cols] = *view.shape() else { panic!("{key}: shape {:?}", view.shape()) };
        backend.unpack(Shape::new(batch, rows, cols), Dtype::F32, view.data())
    }

    /// An expected value, F32 or I64, as f64.
    pub fn values(&self, key: &str) -> Vec<f64> {
        let file = self.file();
        let view = file.tensor(key).unwrap_or_else(|e| panic!("{key}: {e}"));
        match view.dtype() {
            safetensors::Dtype::F32 => view
                .data()
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            safetensors::Dtype::I64 => view
                .data()
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64)
                .collect(),
            other => panic!("{key}: {other:?}"),
        }
    }

    /// A stored tensor of bytes.
    pub fn bytes(&self, key: &str) -> Vec<u8> {
        self.file().tensor(key).unwrap_or_else(|e| panic!("{key}: {e}")).data().to_vec()
    }

    /// Names of stored tensors under a prefix.
    pub fn keys_under(&self, prefix: &str) -> Vec<String> {
        let mut keys: Vec<String> =
            self.file().names().iter().filter_map(|k| k.strip_prefix(prefix).map(str::to_string)).collect();
        keys.sort();
        keys
    }

    /// `expert_t - base`, in f32 on the device: `T x rows x cols`.
    pub fn deltas<B: Backend>(&self, backend: &B, weight: &str) -> Result<B::Tensor> {
        let (rows, cols) = self.matrix_shape(&format!("base/{weight}"));
        let mut deltas = self.stacked(backend, "expert", weight, rows, cols)?;
        backend.axpby(-1.0, &self.upload(backend, &format!("base/{weight}"))?, 1.0, &mut deltas)?;
        Ok(deltas)
    }

    /// `KIND.t/W` of all tasks, padded with zero rows to `rows`.
    pub fn stacked<B: Backend>(
        &self,
        backend: &B,
        kind: &str,
        weight: &str,
        rows: usize,
        cols: usize,
    ) -> Result<B::Tensor> {
        let mut all = backend.zeros(Shape::new(self.tasks, rows, cols))?;
        for t in 0..self.tasks {
            let key = format!("{kind}.{t}/{weight}");
            let own_rows = self.matrix_shape(&key).0;
            backend.copy_block(
                &self.upload(backend, &key)?,
                [0, 0, 0],
                &mut all,
                [t, 0, 0],
                [1, own_rows, cols],
            )?;
        }
        Ok(all)
    }
}
