//! A place to run the program in: tiny models of `model_goldens`, and samples for them.

#![allow(dead_code)] // each test binary uses some of these

use crate::synthetic::{Numbers, Tensor, Tensors, read_tensors, write_tensors};
use esmerge::backend::Dtype;
use esmerge::checkpoint::Stored;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model_goldens").join(name)
}

/// A folder of its own with models and samples.
pub struct Place(pub tempfile::TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// A copy of a golden model, its weights moved a little.
    pub fn model(&self, name: &str, architecture: &str, seed: u64) {
        let from = golden(architecture);
        fs::create_dir_all(self.path(name)).unwrap();
        for entry in fs::read_dir(&from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), self.path(name).join(entry.file_name())).unwrap();
        }
        if seed > 0 {
            let mut numbers = Numbers::new(seed);
            let moved: Tensors = read_tensors(&from)
                .into_iter()
                .map(|(name, tensor)| {
                    let values = tensor.values();
                    let steps = numbers.take(values.len(), 0.02);
                    let values: Vec<f32> = values.iter().zip(steps).map(|(v, s)| v + s).collect();
                    (name, Tensor::float(Dtype::F32, &tensor.shape, &values))
                })
                .collect();
            fs::remove_file(self.path(name).join("model.safetensors")).unwrap();
            write_tensors(&self.path(name).join("model.safetensors"), &moved, &BTreeMap::new());
        }
    }

    /// Token ids, one row a sample.
    pub fn ids(&self, name: &str, rows: &[&[i32]]) {
        let tensors = Tensors::from([("input_ids".to_owned(), ids(rows))]);
        write_tensors(&self.path(name), &tensors, &BTreeMap::new());
    }

    pub fn esmerge(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_esmerge"))
            .current_dir(self.0.path())
            .env("ESMERGE_DEVICE", "cpu")
            .args(arguments)
            .output()
            .unwrap()
    }

    pub fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.esmerge(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The program refuses with one error that has these words, and writes nothing.
    pub fn refuses(&self, arguments: &[&str], words: &[&str]) {
        let files = || fs::read_dir(self.0.path()).unwrap().count();
        let before = files();
        let output = self.esmerge(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{text}");
        assert_eq!(text.matches("error: ").count(), 1, "{text}");
        assert!(!text.contains("panicked"), "{text}");
        for word in words {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
        assert_eq!(files(), before, "nothing is left behind");
    }
}

/// Token ids, one row a sample.
pub fn ids(rows: &[&[i32]]) -> Tensor {
    let bytes = rows.iter().flat_map(|r| r.iter().flat_map(|id| id.to_le_bytes())).collect();
    Tensor { dtype: Stored::I32, shape: vec![rows.len(), rows[0].len()], bytes }
}

/// Three texts that every golden text model takes.
pub const IDS: [&[i32]; 3] = [&[7, 30, 12, 5], &[20, 21, 6, 39], &[33, 9, 9, 14]];
