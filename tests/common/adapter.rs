//! Adapters on disk as PEFT writes them, and in float64 what they add.

#![allow(dead_code)] // each test binary uses some of these

use crate::synthetic::{Numbers, Tensor, Tensors, write_tensors};
use esmerge::backend::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// An adapter in the making.
#[derive(Clone)]
pub struct Lora {
    pub settings: Value,
    pub tensors: Tensors,
    numbers: Numbers,
}

impl Lora {
    pub fn new(seed: u64, r: usize, alpha: f64) -> Lora {
        let settings = json!({ "peft_type": "LORA", "r": r, "lora_alpha": alpha, "target_modules": [], "bias": "none",
            "rank_pattern": {}, "alpha_pattern": {}, "base_model_name_or_path": null, "task_type": null });
        Lora { settings, tensors: Tensors::new(), numbers: Numbers::new(seed) }
    }

    pub fn set(mut self, key: &str, value: Value) -> Lora {
        self.settings[key] = value;
        self
    }

    /// A whole tensor, or any other.
    pub fn tensor(mut self, key: &str, shape: &[usize]) -> Lora {
        let values = self.numbers.take(shape.iter().product(), 0.3);
        self.tensors.insert(format!("base_model.model.{key}"), Tensor::float(Dtype::F32, shape, &values));
        self
    }

    /// Factors of a linear layer.
    pub fn linear(self, module: &str, d_out: usize, d_in: usize, r: usize) -> Lora {
        self.tensor(&format!("{module}.lora_A.weight"), &[r, d_in])
            .tensor(&format!("{module}.lora_B.weight"), &[d_out, r])
    }

    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("adapter_config.json"), self.settings.to_string()).unwrap();
        write_tensors(&folder.join("adapter_model.safetensors"), &self.tensors, &BTreeMap::new());
    }

    fn values(&self, key: &str) -> Vec<f64> {
        self.tensors[&format!("base_model.model.{key}")].values().into_iter().map(f64::from).collect()
    }

    /// `B A` of a module, `d_out x d_in`.
    pub fn product(&self, module: &str) -> Vec<f64> {
        product(
            &self.values(&format!("{module}.lora_B.weight")),
            &self.values(&format!("{module}.lora_A.weight")),
            self.rank(module),
        )
    }

    pub fn rank(&self, module: &str) -> usize {
        self.tensors[&format!("base_model.model.{module}.lora_A.weight")].shape[0]
    }
}

/// `B A` with `B` of `r` columns.
pub fn product(b: &[f64], a: &[f64], r: usize) -> Vec<f64> {
    let d_in = a.len() / r;
    let entry = |row: &[f64], j: usize| row.iter().enumerate().map(|(k, b)| b * a[k * d_in + j]).sum();
    b.chunks(r).flat_map(|row| (0..d_in).map(move |j| entry(row, j))).collect()
}

pub fn transposed(x: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| x.iter().skip(j).step_by(columns).copied()).collect()
}

/// `||got - want|| / ||want||`
pub fn relative(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut got.iter().zip(want).map(|(&g, w)| f64::from(g) - w)) / norm(&mut want.iter().copied())
}
