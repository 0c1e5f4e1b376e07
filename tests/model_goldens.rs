//! Every architecture against Hugging Face's transformers, on every device: tiny random models, run once by `model_goldens/generate.py`.

#[path = "common/claims.rs"]
mod claims;
#[path = "common/devices.rs"]
mod devices;

use claims::Stated;
use esmerge::backend::layers::Layers;
use esmerge::calibration::{Capture, MAX_SIZE};
use esmerge::data::{ModelSource, Task};
use esmerge::model::NoTap;
use libtest_mimic::Trial;
use pollster::block_on;
use std::path::PathBuf;

const ARCHITECTURES: [&str; 28] = [
    "clip",
    "open_clip",
    "siglip",
    "vit",
    "dinov2",
    "dinov2_sizes",
    "bert",
    "bert_decoder",
    "roberta",
    "distilbert",
    "modernbert",
    "t5",
    "t5_gated",
    "llama",
    "mistral",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "mixtral",
    "mixtral_in_one",
    "qwen3_moe",
    "qwen3_moe_in_one",
    "gpt2",
    "gpt_neox",
];

/// One architecture on one device.
struct Golden(&'static str);

impl devices::Work for Golden {
    type Output = ();

    fn run<B: Layers>(self, backend: &B) {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/model_goldens");
        let source = ModelSource::checkpoint(&folder.join(self.0)).unwrap();
        let golden = Task::open(&folder.join(format!("{}.safetensors", self.0))).unwrap();
        let n = golden.len("").unwrap();
        let samples = golden.samples("", 0..n, None).unwrap();

        let model = source.model(backend).unwrap();
        let features = block_on(model.run(&samples, None, &mut NoTap)).unwrap();
        close(&features, &golden.floats("features").unwrap().0, &format!("{} features", self.0));

        let mut capture = Capture::new(backend, model, &samples, MAX_SIZE).unwrap();
        let mut seen = 0;
        while capture.next_index() < capture.blocks() {
            for layer in block_on(capture.next_block(|_| true)).unwrap() {
                if let Ok((expected, _)) = golden.floats(&format!("{}.input", layer.weight)) {
                    close(&layer.entry.input.unwrap(), &expected, &layer.weight);
                    seen += 1;
                }
            }
        }
        // transformers keeps those of its ViT under names of its own
        assert!(seen == 2 || ["vit", "dinov2", "dinov2_sizes"].contains(&self.0), "{seen} layers compared");
    }
}

fn close(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= 2e-5 * size, "{what}, element {i}: {a} for {e}");
    }
}

fn main() {
    let mut trials = Vec::new();
    for device in devices::for_each_device() {
        for architecture in ARCHITECTURES {
            let name = format!("{device}/{architecture}_gives_the_features_and_inputs_of_transformers");
            let (absent, device) = (!device.present(), device.clone());
            let claim = move || {
                device.with(Golden(architecture));
                Ok(())
            };
            trials.push(Trial::test(name, claim).with_ignored_flag(absent));
        }
    }
    claims::run(trials, Stated { cpu: 28, adapter: 28, besides: 0 });
}
