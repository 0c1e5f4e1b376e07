//! A device that fails in the middle of a merge, in whatever way and wherever, is tried again, and the merge gives what it would
//! have given; or it ends in an error, or on the CPU. And how often a merge asks something of the device: what each time costs, a
//! GPU has to make up for.

#[path = "common/claims.rs"]
mod claims;
#[path = "common/devices.rs"]
mod devices;
#[path = "common/synthetic.rs"]
mod synthetic;

use claims::Stated;
use devices::{Device, for_each_device};
use esmerge::backend::cpu::Cpu;
use esmerge::backend::gpu::{Config, Fault, FaultKind, Gpu};
use esmerge::backend::layers::Layers;
use esmerge::backend::{Backend, Dtype, Shape};
use esmerge::checkpoint::OutputDir;
use esmerge::checkpoint::journal::{Earlier, Journal, Writer};
use esmerge::kernels::Products;
use esmerge::linalg::{Accuracy, pending_polar};
use esmerge::pipeline::{Error, Options, Output, Progress, Silent, merge};
use esmerge::plan::{Family, plan};
use esmerge::recipe::{Overrides, Recipe};
use esmerge::report::Report;
use libtest_mimic::Trial;
use pollster::block_on;
use std::path::Path;
use std::time::Duration;

type Test = fn(&str);

const TESTS: [(&str, Test); 8] = [
    ("a_lost_device_is_opened_again", a_lost_device_is_opened_again),
    ("whatever_goes_wrong_at_whatever_dispatch_the_merge_has_the_same_bytes", any_fault),
    ("what_goes_wrong_every_time_ends_in_an_error_and_no_output_or_on_the_cpu", every_time),
    ("the_cpu_goes_on_with_what_the_journal_has", the_cpu_goes_on),
    ("a_device_that_does_not_answer_is_not_waited_for", no_answer),
    ("device_memory_does_not_grow_with_the_number_of_layers", memory),
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
    claims::run(trials, Stated { cpu: 0, adapter: 8, besides: 0 });
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
        batches.dispatches <= 660 && batches.submissions <= 50 && batches.read_backs <= 50,
        "{batches:?}"
    );
    assert!(
        single.dispatches > batches.dispatches && single.read_backs > batches.read_backs,
        "{single:?}, {batches:?}"
    );
}

/// What `--max-memory` says of the host holds for the device by construction: it has the work on one batch, and no more.
fn memory(selector: &str) {
    const SHAPE: [usize; 2] = [64, 256];
    let peak = |layers: usize| {
        let family = synthetic::Family::new();
        for (seed, name) in ["base", "experts/cars", "experts/birds"].into_iter().enumerate() {
            let mut numbers = synthetic::Numbers::new(seed as u64);
            let tensor = |numbers: &mut synthetic::Numbers| {
                synthetic::Tensor::float(Dtype::F32, &SHAPE, &numbers.take(SHAPE.iter().product(), 1.0))
            };
            let name_of = |layer: usize| format!("vision_model.encoder.layers.{layer}.mlp.fc1.weight");
            let tensors = (0..layers).map(|layer| (name_of(layer), tensor(&mut numbers))).collect();
            family.write_model(name, &tensors);
        }
        let recipe = "merge_method: tsv_m\nbase_model: base\nmodels: [{model: experts/cars}, {model: experts/birds}]\n";
        family.write("recipe.yaml", recipe);
        let config = Config { batch_bytes: Some(1), ..Config::default() };
        let gpu = block_on(Gpu::open_with(Some(selector), &config)).expect("it was listed");
        merged(&gpu, &family.path("recipe.yaml"), &family.path("out"), &mut Silent);
        gpu.peak_bytes()
    };
    let (shallow, deep) = (peak(4), peak(24));
    let weights = (3 * 24 * 4 * SHAPE[0] * SHAPE[1]) as u64;
    assert!(deep <= shallow && deep < weights, "{deep} bytes for 24 layers of {weights}, {shallow} for 4");
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
    assert!(weights(&family, "whole") == weights(&family, "disturbed"), "the same bytes");
}

/// A merge of few kernels, which a device that is opened anew compiles in no time.
const SUM: &str = "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: experts/cars}, {model: experts/birds}]\n";

/// Dispatches of that merge from one fault to the next; 1 for a fault at every one.
fn step() -> usize {
    std::env::var("ESMERGE_FAULT_STEP").ok().and_then(|step| step.parse().ok()).unwrap_or(11)
}

/// Devices that did not answer are never let go of: their memory adds up.
const MOST_SILENT: u64 = 30;

fn any_fault(selector: &str) {
    let family = synthetic::Family::new();
    family.write("sum.yaml", SUM);
    // what comes of a fault is the host's work, the same for every driver: one that compiles slowly is spared most of it
    let is_slow = selector.to_lowercase().contains("swiftshader");
    let recipes: &[_] = &[("sum.yaml", "sum"), ("recipe.yaml", "esm")][..if is_slow { 1 } else { 2 }];
    let step = if is_slow { 5 * step() } else { step() };
    for &(recipe, whole) in recipes {
        let gpu = block_on(Gpu::open(Some(selector))).expect("it was listed");
        merged(&gpu, &family.path(recipe), &family.path(whole), &mut Silent);
        let dispatches = gpu.dispatches();
        drop(gpu);
        for (i, kind) in FaultKind::ALL.into_iter().enumerate() {
            let places: Vec<u64> = match (recipe, kind) {
                ("recipe.yaml", _) => vec![dispatches * (2 * i as u64 + 1) / 12],
                (_, FaultKind::Silent) => {
                    (0..dispatches).step_by(step.max((dispatches / MOST_SILENT) as usize)).collect()
                }
                _ => (0..dispatches).step_by(step).collect(),
            };
            for at in places {
                with_fault(selector, &family, recipe, Fault { at, kind, again: false });
                assert!(
                    weights(&family, "out") == weights(&family, whole),
                    "{recipe}, {kind:?} at {at}: the same bytes"
                );
                std::fs::remove_dir_all(family.path("out")).expect("it was written");
            }
        }
    }
}

/// A merge during which something goes wrong once.
fn with_fault(selector: &str, family: &synthetic::Family, recipe: &str, fault: Fault) {
    let report = merged(&failing(selector, fault), &family.path(recipe), &family.path("out"), &mut Silent);
    let tries = report.warnings.iter().filter(|warning| warning.contains("trying again")).count();
    // the others may strike where nothing follows that they could spoil
    let shows = matches!(fault.kind, FaultKind::Lost | FaultKind::OutOfMemory | FaultKind::Invalid);
    assert!(tries == 1 || !shows && tries == 0, "{recipe}, {fault:?}: {:?}", report.warnings);
}

fn every_time(selector: &str) {
    let family = synthetic::Family::new();
    family.write("sum.yaml", SUM);
    merged(&Cpu, &family.path("sum.yaml"), &family.path("by_cpu"), &mut Silent);
    for (kind, at, words) in [
        (FaultKind::Lost, 0, "lost"),
        (FaultKind::OutOfMemory, 20, "out of memory"),
        (FaultKind::Invalid, 7, "usage"),
        (FaultKind::Silent, 40, "has not finished"),
    ] {
        let (fault, out) = (Fault { at, kind, again: true }, family.path("out"));
        let attempt = |fallback: bool| {
            let output = OutputDir::create(&out, false).expect("a new folder");
            let options = Options { fallback, ..Options::default() };
            attempt(&failing(selector, fault), &family.path("sum.yaml"), output, &options, &mut Silent)
        };
        let error = attempt(false).unwrap_err().to_string();
        assert!(error.to_lowercase().contains(words), "{kind:?}: {error}");
        let left: Vec<_> =
            family.files().into_iter().filter(|path| path.to_string_lossy().contains("/out")).collect();
        assert!(left.is_empty(), "{left:?}");

        let report = attempt(true).expect("by the CPU");
        assert!(weights(&family, "out") == weights(&family, "by_cpu"), "{kind:?} at {at}");
        assert_eq!(report.device, Cpu.name());
        assert!(report.warnings.iter().any(|w| w.contains("--fallback cpu")), "{:?}", report.warnings);
        std::fs::remove_dir_all(out).expect("it was written");
    }
}

/// Units before the fault are the GPU's, those after it the CPU's.
fn the_cpu_goes_on(selector: &str) {
    #[derive(Default)]
    struct Notes(Vec<String>);
    impl Progress for Notes {
        fn note(&mut self, message: &str) {
            self.0.push(message.to_owned());
        }
    }
    let family = synthetic::Family::new();
    let config = Config { batch_bytes: Some(1), ..Config::default() };
    let gpu = block_on(Gpu::open_with(Some(selector), &config)).expect("it was listed");
    merged(&gpu, &family.path("recipe.yaml"), &family.path("by_gpu"), &mut Silent);
    merged(&Cpu, &family.path("recipe.yaml"), &family.path("by_cpu"), &mut Silent);

    let fault = Some(Fault { at: gpu.dispatches() * 2 / 3, kind: FaultKind::Lost, again: true });
    let gpu = block_on(Gpu::open_with(Some(selector), &Config { fault, ..config })).expect("it was listed");
    let writer = Writer { every: Duration::ZERO, ..Writer::only() };
    let journal =
        Journal::open(&family.path("out"), false, writer, Earlier::Use, &mut |_| {}).expect("a new folder");
    let mut notes = Notes::default();
    let options = Options { fallback: true, ..Options::default() };
    attempt(&gpu, &family.path("recipe.yaml"), journal, &options, &mut notes).expect("by both");
    assert!(notes.0.iter().any(|note| note.contains("done already")), "{:?}", notes.0);

    let tensors = |out: &str| synthetic::read_tensors(&family.path(out));
    let (out, by_gpu, by_cpu) = (tensors("out"), tensors("by_gpu"), tensors("by_cpu"));
    assert!(out != by_cpu, "something is the GPU's");
    for (name, tensor) in &out {
        if tensor.dtype != esmerge::checkpoint::Stored::F32 {
            continue;
        }
        let distance = |other: &synthetic::Tensor| {
            let (x, y) = (tensor.values(), other.values());
            let squares = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
            };
            squares(&mut x.iter().zip(&y).map(|(x, y)| x - y)) / squares(&mut y.iter().copied())
        };
        // the devices agree that far (docs/numerics.md)
        let nearest = distance(&by_gpu[name]).min(distance(&by_cpu[name]));
        assert!(nearest < 1e-4, "{name}: {nearest}");
    }
}

/// Every wait ends at once, done or not.
fn no_answer(selector: &str) {
    let family = synthetic::Family::new();
    let opened =
        block_on(Gpu::open_with(Some(selector), &Config { patience: Duration::ZERO, ..Config::default() }));
    let (out, options) = (family.path("out"), Options { fallback: true, ..Options::default() });
    match opened {
        // not even the probe was waited for
        Err(error) => assert!(error.to_string().contains("has not finished"), "{error}"),
        Ok(gpu) => {
            let output = OutputDir::create(&out, false).expect("a new folder");
            let report = attempt(&gpu, &family.path("recipe.yaml"), output, &options, &mut Silent);
            assert_eq!(report.expect("by the CPU").device, Cpu.name());
        }
    }
}

fn failing(selector: &str, fault: Fault) -> Gpu {
    let config = Config { fault: Some(fault), ..Config::default() };
    block_on(Gpu::open_with(Some(selector), &config)).expect("it was listed")
}

fn weights(family: &synthetic::Family, out: &str) -> Vec<u8> {
    std::fs::read(family.path(out).join("model.safetensors")).expect("weights")
}

fn attempt<B: Layers>(
    backend: &B,
    recipe: &Path,
    output: impl Into<Output>,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let recipe = Recipe::open(recipe, &Overrides::default()).expect("a recipe");
    let family = Family::open(&recipe).expect("a family");
    let plan = plan(&recipe, &family).expect("a plan");
    block_on(merge(backend, &recipe, &family, &plan, output, options, progress))
}

fn merged<B: Layers>(backend: &B, recipe: &Path, out: &Path, progress: &mut dyn Progress) -> Report {
    let output = OutputDir::create(out, false).expect("a new folder");
    attempt(backend, recipe, output, &Options::default(), progress).expect("a merge")
}
