//! Capture inside a merge of decoders with Llama-3.2-1B's proportions: twice the depth takes no more memory.
//!
//! Each merge runs in a process of its own (this test binary, started again), which reports its peak resident size.
//! `ESMERGE_LLAMA_WIDTH=2048` runs it at the real widths, which takes long.
#![cfg(target_os = "linux")]

#[path = "common/synthetic.rs"]
mod synthetic;

use esmerge::backend::Dtype;
use esmerge::backend::cpu::Cpu;
use esmerge::pipeline::{Options, Silent, merge};
use esmerge::plan::{Family, plan};
use esmerge::recipe::{Overrides, Recipe};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use synthetic::{Numbers, Tensor, Tensors, write_tensors};

/// Set for the process that merges: the folder of its recipe.
const FOLDER: &str = "ESMERGE_TEST_FOLDER";

const EXPERTS: usize = 4;
const VOCABULARY: usize = 256;

/// Width of the hidden state; 2048 in Llama-3.2-1B, which has 32 heads of 64, 8 key heads, and 4 x 2048 in its MLP.
fn width() -> usize {
    std::env::var("ESMERGE_LLAMA_WIDTH").ok().and_then(|w| w.parse().ok()).unwrap_or(256)
}

#[test]
fn twice_the_depth_takes_no_more_memory() {
    let (shallow, deep) = (measure(4), measure(8));
    println!("peak: {shallow} MiB for 4 blocks, {deep} MiB for 8");
    assert!(deep <= 1.1 * shallow, "{deep} MiB for 8 blocks, {shallow} for 4");
}

/// Peak resident size of a merge that captures, in MiB.
fn measure(blocks: usize) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    write_family(folder.path(), blocks);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["merging_process", "--exact", "--nocapture", "--include-ignored"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let after = text.split("peak_mib=").nth(1).unwrap();
    after.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "the process that the memory test starts"]
fn merging_process() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let recipe = Recipe::open(&folder.join("recipe.yaml"), &Overrides::default()).unwrap();
    let family = Family::open(&recipe).unwrap();
    let plan = plan(&recipe, &family).unwrap();
    let options = Options { shard_size: 5_000_000_000, keep_delta: None, overrides: vec![] };
    let output = folder.join("out");
    pollster::block_on(merge(&Cpu, &recipe, &family, &plan, &output, &options, &mut Silent)).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let peak = line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0;
    println!("\npeak_mib={peak} ");
}

fn write_family(folder: &Path, blocks: usize) {
    let d = width();
    let write = |name: &str, seed: u64| {
        let mut base = Numbers::new(1);
        let mut own = Numbers::new(seed);
        let mut tensors = Tensors::new();
        let mut matrix = |name: String, rows: usize, cols: usize| {
            let mut values = base.take(rows * cols, 2.0 / (cols as f32).sqrt());
            if seed > 0 {
                let steps = own.take(rows * cols, 0.1 / (cols as f32).sqrt());
                values.iter_mut().zip(steps).for_each(|(v, s)| *v += s);
            }
            tensors.insert(name, Tensor::float(Dtype::F16, &[rows, cols], &values));
        };
        matrix("model.embed_tokens.weight".to_owned(), VOCABULARY, d);
        for i in 0..blocks {
            let at = |part: &str| format!("model.layers.{i}.{part}.weight");
            for (part, rows, cols) in [
                ("self_attn.q_proj", d, d),
                ("self_attn.k_proj", d / 4, d),
                ("self_attn.v_proj", d / 4, d),
                ("self_attn.o_proj", d, d),
                ("mlp.gate_proj", 4 * d, d),
                ("mlp.up_proj", 4 * d, d),
                ("mlp.down_proj", d, 4 * d),
            ] {
                matrix(at(part), rows, cols);
            }
        }
        let ones = |n: usize| Tensor::float(Dtype::F16, &[n], &vec![1.0; n]);
        tensors.insert("model.norm.weight".to_owned(), ones(d));
        for i in 0..blocks {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                tensors.insert(format!("model.layers.{i}.{norm}.weight"), ones(d));
            }
        }
        fs::create_dir_all(folder.join(name)).unwrap();
        write_tensors(&folder.join(name).join("model.safetensors"), &tensors, &BTreeMap::new());
        let config = format!(
            r#"{{"model_type": "llama", "hidden_size": {d}, "intermediate_size": {}, "num_hidden_layers": {blocks},
                "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": {VOCABULARY},
                "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu"}}"#,
            4 * d
        );
        fs::write(folder.join(name).join("config.json"), config).unwrap();
    };
    write("base", 0);
    let mut recipe = "merge_method: esm\nbase_model: base\nmodels:\n".to_owned();
    for t in 1..=EXPERTS {
        write(&format!("expert{t}"), 1 + t as u64);
        recipe += &format!("  - {{model: expert{t}, calibration: {{data: ids.safetensors, samples: 8}}}}\n");
    }
    recipe += "parameters: {preset: esm-lm, alpha: 1.0, accuracy: fast}\n";
    fs::write(folder.join("recipe.yaml"), recipe).unwrap();

    let (samples, length) = (8, 32);
    let ids = (0..samples * length).map(|i| (i * 37 % VOCABULARY) as f32).collect::<Vec<_>>();
    let bytes = ids.iter().flat_map(|&id| (id as i32).to_le_bytes()).collect();
    let tensor = Tensor { dtype: esmerge::checkpoint::Stored::I32, shape: vec![samples, length], bytes };
    let tensors = Tensors::from([("input_ids".to_owned(), tensor)]);
    write_tensors(&folder.join("ids.safetensors"), &tensors, &BTreeMap::new());
}
