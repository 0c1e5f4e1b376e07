//! A device that is lost in the middle of a merge is opened again, and the merge gives what it would have given. And how often a
//! merge asks something of the device: what each time costs, a GPU has to make up for.

#[path = "common/claims.rs"]
mod claims;
#[path = "common/devices.rs"]
mod devices;
#[path = "common/synthetic.rs"]
mod synthetic;

use claims::Stated;
use devices::{Device, for_each_device};
use esmerge::backend::gpu::{Config, Gpu};
use esmerge::backend::{Backend, Shape};
use esmerge::checkpoint::OutputDir;
use esmerge::kernels::Products;
use esmerge::linalg::{Accuracy, pending_polar};
use esmerge::pipeline::{Options, Progress, Silent, merge};
use esmerge::plan::{Family, plan};
use esmerge::recipe::{Overrides, Recipe};
use libtest_mimic::Trial;
use pollster::block_on;
use std::path::Path;

type Test = fn(&str);

const TESTS: [(&str, Test); 3] = [
    ("a_lost_device_is_opened_again", a_lost_device_is_opened_again),
    ("layers_of_one_shape_are_merged_in_few_dispatches_and_waits", counts),
    ("a_chain_has_as_many_dispatches_as_the_documentation_says", chains),
];

fn main() {
    let mut trials = Vec::new();
    for device in for_each_device() {
        let (selector, absent) = match &device {
            Device::Cpu => continue,
            Device::Gpu(selector, _) => (Some(selector.clone()), false),
            Device::Absent(_) => (None, true),
        };
        for (name, test) in TESTS {
            let selector = selector.clone();
            let run = move || {
                selector.iter().for_each(|s| test(s));
                Ok(())
            };
            trials.push(Trial::test(format!("{device}/{name}"), run).with_ignored_flag(absent));
        }
    }
    claims::run(trials, Stated { cpu: 0, adapter: 3, besides: 0 });
}

/// What a merge asks of a device.
#[derive(Debug)]
struct Counts {
    dispatches: u64,
    submissions: u64,
    read_backs: u64,
}

/// As on hardware, which keeps every eigenproblem to itself; with batches of the usual size, and of one layer.
fn counts(selector: &str) {
    let family = synthetic::Family::new();
    let count = |out: &str, batch_bytes: Option<u64>| {
        let (products, largest_eigenproblem) = (Some(Products::Tiled), Some(usize::MAX));
        let config = Config { products, largest_eigenproblem, batch_bytes, ..Config::default() };
        let gpu = block_on(Gpu::open_with(Some(selector), &config)).expect("it was listed");
        merged(&gpu, &family.path("recipe.yaml"), &family.path(out), &mut Silent);
        Counts { dispatches: gpu.dispatches(), submissions: gpu.submissions(), read_backs: gpu.read_backs() }
    };
    let (batches, single) = (count("batches", None), count("single", Some(1)));
    assert!(
        batches.dispatches <= 580 && batches.submissions <= 50 && batches.read_backs <= 50,
        "{batches:?}"
    );
    assert!(
        single.dispatches > batches.dispatches && single.read_backs > batches.read_backs,
        "{single:?}, {batches:?}"
    );
}

/// Two dispatches a block of 32 of a factorization and one a panel of 128; two a round of blocks of 16 of an eigenproblem; four
/// factorizations a polar factor, and 59, nine of which look for directions that did not arrive.
fn chains(selector: &str) {
    // products that are cut nowhere, whatever the device
    let (products, largest_eigenproblem) = (Some(Products::Direct), Some(usize::MAX));
    let config = Config { products, largest_eigenproblem, ..Config::default() };
    let gpu = block_on(Gpu::open_with(Some(selector), &config)).expect("it was listed");
    let factorization = |n: usize| (2 * n.div_ceil(32) + n.div_ceil(128)) as u64;
    for n in [1, 32, 150, 300] {
        let identity: Vec<f32> = (0..n * n).map(|i| f32::from(u8::from(i / n == i % n))).collect();
        let identity = gpu.upload(Shape::matrix(n, n), &identity).expect("it is small");
        let before = gpu.dispatches();
        gpu.inverse_cholesky(&identity).expect("it is small");
        assert_eq!(gpu.dispatches() - before, factorization(n), "{n}");
        let before = gpu.dispatches();
        gpu.symmetric_eigen(&identity).expect("it is small");
        let sweeps = if n <= 128 { 12 } else { 28 * (2 * n.div_ceil(32) - 1) };
        assert_eq!(gpu.dispatches() - before, (sweeps + 7) as u64, "{n}");
    }
    for n in [150, 300] {
        let a = gpu.random_normal(Shape::matrix(n, n), 1, 0).expect("it is small");
        let before = gpu.dispatches();
        pending_polar(&gpu, &a, Accuracy::Balanced).expect("it is small");
        assert_eq!(gpu.dispatches() - before, 4 * factorization(n) + 59, "{n}");
    }
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
    let options = Options { shard_size: 5_000_000_000, max_memory: 1 << 30, ..Options::default() };
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
