//! Capture inside a merge of decoders with Llama-3.2-1B's proportions: twice the depth takes no more memory, where none is given to
//! deltas and reading ahead (tests/memory.rs holds what is given).
//!
//! Each merge runs in a process of its own (this test binary, started again), which reports its peak resident size. The
//! test that always runs has an eighth of the width; the one at the real widths (hidden 2048, intermediate 8192, 32 heads,
//! 8 key heads; only the vocabulary is small, to keep the files small) writes 10 GB of temporary files and is run by
//!
//! ```sh
//! cargo test --release --test capture_memory -- --ignored --exact the_same_at_the_widths_of_llama_3_2_1b --nocapture
//! ```
#![cfg(target_os = "linux")]

#[path = "common/peak.rs"]
mod peak;
#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::checkpoint::{Stored, TensorSpec, TensorWriter};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;
use synthetic::{Numbers, Tensor, Tensors, write_tensors};

const EXPERTS: usize = 4;
const VOCABULARY: usize = 256;

/// Width of the hidden state of Llama-3.2-1B.
const REAL: usize = 2048;

#[test]
fn twice_the_depth_takes_no_more_memory() {
    depth_costs_no_memory(REAL / 8);
}

#[test]
#[ignore = "10 GB of temporary files; see the head of this file"]
fn the_same_at_the_widths_of_llama_3_2_1b() {
    depth_costs_no_memory(REAL);
}

fn depth_costs_no_memory(width: usize) {
    let (shallow, deep) = (measure(width, 4), measure(width, 8));
    println!("width {width}: peak {shallow} MiB with 4 blocks, {deep} MiB with 8");
    assert!(deep <= 1.1 * shallow, "{deep} MiB with 8 blocks, {shallow} with 4");
}

/// Peak resident size of a merge that captures, in MiB.
fn measure(width: usize, blocks: usize) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    write_family(folder.path(), width, blocks);
    let started = Instant::now();
    let memory = peak::merge_apart(folder.path(), 0);
    println!(
        "width {width}, {blocks} blocks: captured and merged in {:.0} s",
        started.elapsed().as_secs_f64()
    );
    memory.peak
}

#[test]
#[ignore = "the process that the memory tests start"]
fn merging_process() {
    peak::merge_here();
}

fn write_family(folder: &Path, width: usize, blocks: usize) {
    write_model(&folder.join("base"), 0, width, blocks);
    let mut recipe = "merge_method: esm\nbase_model: base\nmodels:\n".to_owned();
    for t in 1..=EXPERTS {
        write_model(&folder.join(format!("expert{t}")), t, width, blocks);
        recipe += &format!("  - {{model: expert{t}, calibration: {{data: ids.safetensors, samples: 4}}}}\n");
    }
    recipe += "parameters: {preset: esm-lm, alpha: 1.0, accuracy: fast}\n";
    fs::write(folder.join("recipe.yaml"), recipe).unwrap();

    let (samples, length) = (4, 16);
    let ids = (0..samples * length).flat_map(|i| ((i * 37 % VOCABULARY) as i32).to_le_bytes()).collect();
    let tensor = Tensor { dtype: Stored::I32, shape: vec![samples, length], bytes: ids };
    let tensors = Tensors::from([("input_ids".to_owned(), tensor)]);
    write_tensors(&folder.join("ids.safetensors"), &tensors, &BTreeMap::new());
}

/// Writes the base (0) or an expert, which is the base moved a little, one tensor in memory at a time.
fn write_model(folder: &Path, expert: usize, d: usize, blocks: usize) {
    fs::create_dir_all(folder).unwrap();
    let shapes = shapes(d, blocks);
    let spec = |(name, shape): &(String, Vec<usize>)| TensorSpec {
        name: name.clone(),
        dtype: Stored::F16,
        shape: shape.clone(),
    };
    let specs: Vec<TensorSpec> = shapes.iter().map(spec).collect();
    let mut file = TensorWriter::create(&folder.join("model.safetensors"), &specs, &BTreeMap::new()).unwrap();
    for (i, (_, shape)) in shapes.iter().enumerate() {
        file.write(&Tensor::float(Dtype::F16, shape, &values(shape, expert, i)).bytes).unwrap();
    }
    file.finish().unwrap();
    let config = format!(
        r#"{{"model_type": "llama", "hidden_size": {d}, "intermediate_size": {}, "num_hidden_layers": {blocks},
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": {VOCABULARY},
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu"}}"#,
        4 * d
    );
    fs::write(folder.join("config.json"), config).unwrap();
}

fn values(shape: &[usize], expert: usize, tensor: usize) -> Vec<f32> {
    let n = shape.iter().product();
    let &[_, cols] = shape else { return vec![1.0; n] };
    let size = 2.0 / (cols as f32).sqrt();
    let mut values = Numbers::new(tensor as u64).take(n, size);
    if expert > 0 {
        let mut own = Numbers::new((1000 * expert + tensor) as u64);
        values.iter_mut().for_each(|v| *v += 0.05 * size * own.next());
    }
    values
}

fn shapes(d: usize, blocks: usize) -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, d])];
    for i in 0..blocks {
        let mut add = |part: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{i}.{part}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[d]);
        add("self_attn.q_proj", &[d, d]);
        add("self_attn.k_proj", &[d / 4, d]);
        add("self_attn.v_proj", &[d / 4, d]);
        add("self_attn.o_proj", &[d, d]);
        add("post_attention_layernorm", &[d]);
        add("mlp.gate_proj", &[4 * d, d]);
        add("mlp.up_proj", &[4 * d, d]);
        add("mlp.down_proj", &[d, 4 * d]);
    }
    shapes.push(("model.norm.weight".to_owned(), vec![d]));
    shapes
}
