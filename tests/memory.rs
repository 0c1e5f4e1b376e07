//! Peak memory is that of one layer, whatever the number of layers, and what `max_memory` allows besides.
//!
//! Each merge runs in a process of its own (this test binary, started again), which reports its peak resident size.
#![cfg(target_os = "linux")]

#[path = "common/peak.rs"]
mod peak;
#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use peak::{MIB, Memory};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use synthetic::{Numbers, Tensor, Tensors, write_tensors};

/// 4 MiB a layer as float32: wide, because wide layers are large and cheap to decompose.
const D_OUT: usize = 64;
const D_IN: usize = 16384;
const TOKENS: usize = 16;

#[test]
fn peak_memory_does_not_grow_with_the_number_of_layers() {
    let shallow = measure(4, 0);
    let deep = measure(32, 0);
    let blocks = (32 * D_OUT * D_IN * 4) as f64 / MIB;
    println!("4 layers: {shallow:?} MiB; 32 layers: {deep:?} MiB; all blocks of one model: {blocks} MiB");
    assert!(blocks >= 10.0 * deep.baseline, "the model is not large enough to tell");
    assert!(deep.peak <= 1.2 * shallow.peak, "{} MiB for 32 layers, {} for 4", deep.peak, shallow.peak);
    assert_eq!((deep.in_memory, deep.on_disk), (0.0, blocks));
}

/// What is read ahead, what waits to be written and the deltas in memory share the budget, so that the peak with one is at most
/// that without and the budget. A tenth of the latter is for what two runs differ by.
#[test]
fn a_budget_bounds_what_memory_is_taken_for_overlap_and_deltas() {
    const BUDGET: f64 = 96.0;
    let none = measure(32, 0);
    let some = measure(32, (BUDGET * MIB) as u64);
    println!("no budget: {none:?} MiB; {BUDGET} MiB: {some:?} MiB");
    assert!(some.peak <= none.peak + 1.1 * BUDGET, "{} MiB, without {}", some.peak, none.peak);
    assert!(some.in_memory > 0.0 && some.in_memory <= 0.625 * BUDGET, "{} MiB", some.in_memory);
    assert_eq!(some.in_memory + some.on_disk, (32 * D_OUT * D_IN * 4) as f64 / MIB, "all deltas");
}

/// Merges two experts of so many layers, with calibration and a budget in bytes, in another process.
fn measure(layers: usize, budget: u64) -> Memory {
    let folder = tempfile::tempdir().unwrap();
    write_family(folder.path(), layers);
    peak::merge_apart(folder.path(), budget)
}

#[test]
#[ignore = "the process that the memory test starts"]
fn merging_process() {
    peak::merge_here();
}

fn write_family(folder: &Path, layers: usize) {
    let name = |i: usize| format!("model.layers.{i}.mlp.down_proj.weight");
    let write = |file: &str, seed: u64| {
        let mut numbers = Numbers::new(seed);
        let mut tensors = Tensors::new();
        for i in 0..layers {
            let values = numbers.take(D_OUT * D_IN, 1.0);
            tensors.insert(name(i), Tensor::float(Dtype::F16, &[D_OUT, D_IN], &values));
        }
        fs::create_dir_all(folder.join(file)).unwrap();
        write_tensors(&folder.join(file).join("model.safetensors"), &tensors, &BTreeMap::new());
    };
    let calibrate = |file: &str, seed: u64| {
        let mut numbers = Numbers::new(seed);
        let mut tensors = Tensors::new();
        for i in 0..layers {
            let values = numbers.take(TOKENS * D_IN, 1.0);
            tensors.insert(name(i) + ".input", Tensor::float(Dtype::F16, &[TOKENS, D_IN], &values));
        }
        let metadata = BTreeMap::from([("format".to_owned(), "esmerge-calibration-1".to_owned())]);
        write_tensors(&folder.join(file), &tensors, &metadata);
    };
    write("base", 1);
    write("a", 2);
    write("b", 3);
    calibrate("a.calib", 4);
    calibrate("b.calib", 5);
    let recipe = "merge_method: esm\nbase_model: base\nmodels:\n  - {model: a, calibration: a.calib}\n  \
                  - {model: b, calibration: b.calib}\nparameters: {alpha: 0.5, accuracy: fast}\n";
    fs::write(folder.join("recipe.yaml"), recipe).unwrap();
    fs::write(folder.join("base/config.json"), r#"{"model_type": "llama"}"#).unwrap();
}
