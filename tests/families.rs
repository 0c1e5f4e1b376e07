//! Two real families through their forward passes, on every device: accuracies, features and captured activations as
//! stated. Where `../shared/family` is missing the trials are ignored, by name; where `CI` is set they fail.

#[path = "common/claims.rs"]
mod claims;
#[path = "common/devices.rs"]
mod devices;

use claims::Stated;
use devices::{Device, Work, for_each_device};
use esmerge::backend::cpu::Cpu;
use esmerge::backend::layers::Layers;
use esmerge::calibration::{Capture, Captured, MAX_SIZE};
use esmerge::checkpoint::TensorFile;
use esmerge::data::{ModelSource, Proxies, Split, Task};
use esmerge::eval::{Accuracy, Evaluator};
use libtest_mimic::Trial;
use pollster::block_on;
use std::path::{Path, PathBuf};

fn main() {
    let mut trials = Vec::new();
    for device in for_each_device() {
        for claim in [Claim::VitAccuracy, Claim::MiniLmAccuracy, Claim::CapturedInputs, Claim::Grams] {
            trials.push(trial(&device, claim));
        }
    }
    claims::run(trials, Stated { cpu: 4, adapter: 4, besides: 0 });
}

/// A claim on a device; ignored, by name, where the device or the families are missing.
fn trial(device: &Device, claim: Claim) -> Trial {
    let here = family("vit").is_dir() && family("minilm").is_dir();
    let wanted = std::env::var_os("CI").is_some();
    let note = if here { "" } else { " [../shared/family is missing]" };
    let ignored = !device.present() || (!here && !wanted);
    let (name, device) = (format!("{device}/{}{note}", claim.name()), device.clone());
    let run = move || {
        device.with(Checked { claim, cpu: device == Device::Cpu });
        Ok(())
    };
    Trial::test(name, run).with_ignored_flag(ignored)
}

#[derive(Clone, Copy)]
enum Claim {
    VitAccuracy,
    MiniLmAccuracy,
    CapturedInputs,
    Grams,
}

impl Claim {
    fn name(self) -> &'static str {
        match self {
            Claim::VitAccuracy => "vit_experts_reach_the_stated_accuracy",
            Claim::MiniLmAccuracy => "minilm_experts_reach_the_stated_accuracy",
            Claim::CapturedInputs => "captured_inputs_are_the_stored_ones",
            Claim::Grams => "grams_are_those_of_the_stored_tokens",
        }
    }
}

struct Checked {
    claim: Claim,
    cpu: bool,
}

impl Work for Checked {
    type Output = ();

    fn run<B: Layers>(self, backend: &B) {
        match (self.claim, self.cpu) {
            (Claim::VitAccuracy, true) => vit_experts_reach_the_stated_accuracy(backend),
            (Claim::VitAccuracy, false) => vit_experts_agree_with_the_cpu(backend),
            (Claim::MiniLmAccuracy, true) => minilm_experts_reach_the_stated_accuracy(backend),
            (Claim::MiniLmAccuracy, false) => a_minilm_expert_agrees_with_the_cpu(backend),
            (Claim::CapturedInputs, _) => captured_inputs_are_the_stored_ones(backend),
            (Claim::Grams, _) => grams_are_those_of_the_stored_tokens(backend),
        }
    }
}

fn family(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/family").join(name)
}

fn floats(path: &Path, name: &str) -> Vec<f32> {
    let file = TensorFile::open(path).unwrap();
    let n = file.meta(name).unwrap().elements();
    bytemuck::pod_collect_to_vec(&file.read_values(name, 0..n).unwrap())
}

/// `||a - b|| / ||b||`
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |v: f64| v * v;
    let gap: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let size: f64 = b.iter().map(|&b| square(f64::from(b))).sum();
    (gap / size).sqrt()
}

fn normalized(features: &[f32], d: usize) -> Vec<f32> {
    let unit = |row: &[f32]| {
        let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        row.iter().map(|&v| (f64::from(v) / norm) as f32).collect::<Vec<_>>()
    };
    features.chunks(d).flat_map(unit).collect()
}

fn vit_expert(root: &Path, task: &str) -> ModelSource {
    ModelSource::checkpoint(&root.join("experts").join(task)).unwrap()
}

fn minilm_expert(root: &Path, task: &str) -> ModelSource {
    let delta = root.join(format!("experts/{task}.delta.safetensors"));
    ModelSource::with_delta(&root.join("base"), &delta).unwrap()
}

/// Right answers on a part of the test set, and the features of its first 16 samples.
fn evaluate<B: Layers>(backend: &B, model: &ModelSource, task: &Path, split: &str) -> (usize, Vec<f32>) {
    let (task, split): (_, Split) = (Task::open(task).unwrap(), split.parse().unwrap());
    let evaluator = Evaluator::new(backend, model).unwrap();
    let classifier = evaluator.classifier(&task, None).unwrap();
    let features = block_on(evaluator.features(&task, &split, classifier.pooling)).unwrap();
    let accuracy = Accuracy::of(&evaluator.right(&task, &split, &classifier, &features).unwrap());
    let d = features.values.len() / features.samples;
    (accuracy.correct, normalized(&features.values[..16 * d], d))
}

/// Accuracies in samples of 500, from the family's README.
const VIT: [(&str, usize); 8] = [
    ("mnist", 469),
    ("fashion", 396),
    ("omniglot", 414),
    ("animals", 457),
    ("xray", 472),
    ("textures", 385),
    ("letters", 444),
    ("digits8", 491),
];

fn vit_experts_reach_the_stated_accuracy<B: Layers>(backend: &B) {
    let root = family("vit");
    for (task, stated) in VIT {
        let file = root.join(format!("tasks/{task}.safetensors"));
        let (correct, features) = evaluate(backend, &vit_expert(&root, task), &file, "test");
        assert!(correct.abs_diff(stated) <= 1, "{task}: {correct} of 500, {stated} stated");
        let reference = floats(&root.join("expected/reference-features.safetensors"), task);
        let error = distance(&features, &reference);
        assert!(error < 1e-4, "{task}: features off by {error:.1e}");
    }
}

fn minilm_experts_reach_the_stated_accuracy<B: Layers>(backend: &B) {
    let stated = [("sst2", 852, 2), ("subj", 933, 2), ("trec", 469, 1), ("emotion", 780, 2)];
    minilm_experts_reach(backend, "test", &stated);
}

/// Right answers and how many may differ, by task.
fn minilm_experts_reach<B: Layers>(backend: &B, split: &str, stated: &[(&str, usize, usize)]) {
    let root = family("minilm");
    for &(task, stated, tolerance) in stated {
        let file = root.join(format!("tasks/{task}.safetensors"));
        let (correct, features) = evaluate(backend, &minilm_expert(&root, task), &file, split);
        assert!(correct.abs_diff(stated) <= tolerance, "{task}: {correct}, {stated} stated");
        let error = distance(&features, &floats(&file, "reference.features"));
        assert!(error < 1e-4, "{task}: features off by {error:.1e}");
    }
}

/// Everything that is captured of a model.
fn captured<B: Layers>(
    backend: &B,
    model: &ModelSource,
    data: &Path,
    samples: usize,
    max_size: u64,
) -> Vec<Captured> {
    let proxies = Proxies { samples, seed: 0, max_length: None };
    let runnable = model.model(backend).unwrap();
    let samples = proxies.read(data, model, runnable.inputs()).unwrap();
    let mut capture = Capture::new(backend, runnable, &samples, max_size).unwrap();
    let mut all = Vec::new();
    for _ in 0..capture.blocks() {
        all.extend(block_on(capture.next_block(|_| true)).unwrap());
    }
    all
}

fn captured_inputs_are_the_stored_ones<B: Layers>(backend: &B) {
    let root = family("vit");
    for task in ["mnist", "xray", "letters"] {
        let data = root.join(format!("tasks/{task}.safetensors"));
        let stored = root.join(format!("calibration/{task}.safetensors"));
        compare(&captured(backend, &vit_expert(&root, task), &data, 4, MAX_SIZE), &stored, true);
    }
    let root = family("minilm");
    let model = minilm_expert(&root, "sst2");
    let data = root.join("tasks/sst2.safetensors");
    let stored = root.join("reference-activations.sst2.safetensors");
    compare(&captured(backend, &model, &data, 2, MAX_SIZE), &stored, false);
}

fn compare(captured: &[Captured], stored: &Path, means: bool) {
    let file = TensorFile::open(stored).unwrap();
    let mut inputs = 0;
    for name in file.tensors().keys().filter_map(|key| key.strip_suffix(".input")) {
        let found =
            captured.iter().find(|c| c.weight == name).unwrap_or_else(|| panic!("{name} was not captured"));
        let error = distance(found.entry.input.as_ref().unwrap(), &floats(stored, &format!("{name}.input")));
        assert!(error < 1e-4, "{name}: inputs off by {error:.1e}");
        if means {
            let error =
                distance(found.entry.mean.as_ref().unwrap(), &floats(stored, &format!("{name}.mean")));
            assert!(error < 1e-4, "{name}: prototype off by {error:.1e}");
        }
        inputs += 1;
    }
    assert!(inputs >= 18);
}

/// Past the size allowed, Grams take the place of tokens: those of the stored tokens.
fn grams_are_those_of_the_stored_tokens<B: Layers>(backend: &B) {
    let root = family("vit");
    let model = vit_expert(&root, "mnist");
    let data = root.join("tasks/mnist.safetensors");
    let raw = captured(backend, &model, &data, 32, MAX_SIZE);
    let small = captured(backend, &model, &data, 32, 1);
    assert_eq!(raw.len(), small.len());
    for (raw, small) in raw.iter().zip(&small) {
        assert_eq!((&raw.weight, &raw.sharing), (&small.weight, &small.sharing));
        assert!(small.entry.input.is_none(), "{}", small.weight);
        let (d, x) = (raw.entry.d_in, raw.entry.input.as_ref().unwrap());
        let mut gram = vec![0f64; d * d];
        for token in x.chunks(d) {
            for (row, &a) in gram.chunks_mut(d).zip(token) {
                row.iter_mut().zip(token).for_each(|(g, &b)| *g += f64::from(a) * f64::from(b));
            }
        }
        let gram: Vec<f32> = gram.into_iter().map(|v| v as f32).collect();
        let error = distance(small.entry.gram.as_ref().unwrap(), &gram);
        assert!(error < 1e-6, "{}: Gram off by {error:.1e}", small.weight);
        let error = distance(small.entry.mean.as_ref().unwrap(), raw.entry.mean.as_ref().unwrap());
        assert!(error < 1e-6, "{}: prototype off by {error:.1e}", small.weight);
    }
}

/// GPUs here are programs, and slow: they get the first samples of the test sets, and are held against the CPU.
const FIRST: &str = "test[:60]";

fn vit_experts_agree_with_the_cpu<B: Layers>(backend: &B) {
    let root = family("vit");
    for (task, _) in VIT {
        let file = root.join(format!("tasks/{task}.safetensors"));
        let model = vit_expert(&root, task);
        let (correct, features) = evaluate(backend, &model, &file, FIRST);
        let (on_cpu, _) = evaluate(&Cpu, &model, &file, FIRST);
        assert!(correct.abs_diff(on_cpu) <= 1, "{task}: {correct} of 60, {on_cpu} on the CPU");
        let reference = floats(&root.join("expected/reference-features.safetensors"), task);
        let error = distance(&features, &reference);
        assert!(error < 1e-4, "{task}: features off by {error:.1e}");
    }
}

fn a_minilm_expert_agrees_with_the_cpu<B: Layers>(backend: &B) {
    let root = family("minilm");
    let model = minilm_expert(&root, "trec");
    let (correct, _) = evaluate(&Cpu, &model, &root.join("tasks/trec.safetensors"), FIRST);
    minilm_experts_reach(backend, FIRST, &[("trec", correct, 1)]);
}
