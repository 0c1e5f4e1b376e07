//! A device that is lost in the middle of a merge is opened again, and the merge gives what it would have given.

#[path = "common/claims.rs"]
mod claims;
#[path = "common/devices.rs"]
mod devices;
#[path = "common/synthetic.rs"]
mod synthetic;

use claims::Stated;
use devices::{Device, for_each_device};
use esmerge::backend::gpu::Gpu;
use esmerge::checkpoint::OutputDir;
use esmerge::pipeline::{Options, Progress, merge};
use esmerge::plan::{Family, plan};
use esmerge::recipe::{Overrides, Recipe};
use libtest_mimic::Trial;
use pollster::block_on;
use std::path::Path;

fn main() {
    let mut trials = Vec::new();
    for device in for_each_device() {
        let (selector, absent) = match &device {
            Device::Cpu => continue,
            Device::Gpu(selector, _) => (Some(selector.clone()), false),
            Device::Absent(_) => (None, true),
        };
        let run = move || {
            selector.iter().for_each(|s| a_lost_device_is_opened_again(s));
            Ok(())
        };
        let name = format!("{device}/a_lost_device_is_opened_again");
        trials.push(Trial::test(name, run).with_ignored_flag(absent));
    }
    claims::run(trials, Stated { cpu: 0, adapter: 1, besides: 0 });
}

/// Loses the device at the third layer, once.
struct Saboteur<'a> {
    gpu: &'a Gpu,
    layers: usize,
    armed: bool,
    warnings: Vec<String>,
}

impl Progress for Saboteur<'_> {
    fn layer(&mut self, _: &str) {
        self.layers += 1;
        if self.armed && self.layers == 3 {
            self.gpu.device().destroy();
        }
    }

    fn warn(&mut self, message: &str) {
        self.warnings.push(message.to_owned());
    }
}

fn a_lost_device_is_opened_again(selector: &str) {
    let family = synthetic::Family::new();
    let run = |out: &str, armed: bool| {
        let gpu = block_on(Gpu::open(Some(selector))).expect("it was listed");
        let mut saboteur = Saboteur { gpu: &gpu, layers: 0, armed, warnings: Vec::new() };
        merged(&gpu, &family.path("recipe.yaml"), &family.path(out), &mut saboteur);
        saboteur.warnings
    };
    assert!(run("whole", false).is_empty());
    let warnings = run("disturbed", true);
    assert!(warnings.len() == 1 && warnings[0].contains("trying again"), "{warnings:?}");
    let weights = |out: &str| std::fs::read(family.path(out).join("model.safetensors")).expect("weights");
    assert!(weights("whole") == weights("disturbed"), "the same bytes");
}

fn merged(gpu: &Gpu, recipe: &Path, out: &Path, progress: &mut dyn Progress) {
    let recipe = Recipe::open(recipe, &Overrides::default()).expect("a recipe");
    let family = Family::open(&recipe).expect("a family");
    let plan = plan(&recipe, &family).expect("a plan");
    let options = Options { shard_size: 5_000_000_000, keep_delta: None, overrides: vec![], force: false };
    block_on(merge(
        gpu,
        &recipe,
        &family,
        &plan,
        OutputDir::create(out, false).expect("a new folder"),
        &options,
        progress,
    ))
    .expect("a merge");
}
