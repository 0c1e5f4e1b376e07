//! Real families against float64: a tiny vision transformer and its eight experts, merged on every device, every delta compared with
//! the oracle's; and `balanced` against `exact` by every method that decomposes, of that family, of the bundled example and of four
//! text experts.
//!
//! Families are in `../shared/family` (`ESMERGE_FAMILY` is the first one's folder). Where one is missing its tests are ignored, by
//! name; where `CI` is set they fail.

#[path = "common/claims.rs"]
mod claims;
#[path = "common/devices.rs"]
mod devices;

use claims::Stated;
use devices::{Device, Work, for_each_device};
use esmerge::backend::layers::Layers;
use esmerge::checkpoint::{DeltaFile, OutputDir, TensorFile};
use esmerge::linalg::Accuracy;
use esmerge::pipeline::{Options, Silent, merge};
use esmerge::plan::{Family, plan};
use esmerge::recipe::{Overrides, Recipe};
use libtest_mimic::{Failed, Trial};
use std::path::{Path, PathBuf};

/// Relative Frobenius errors, of all deltas together and of the worst, as README.md and docs/numerics.md promise them. The distances
/// themselves are printed, and docs/numerics.md has them.
const EXACT: Bound = Bound { all: 1e-5, worst: 1e-5 };
const BALANCED: Bound = Bound { all: 2e-3, worst: 2e-2 };
/// A sanity bound: nothing is promised.
const FAST: Bound = Bound { all: 0.1, worst: 0.5 };

#[derive(Clone, Copy)]
struct Bound {
    all: f64,
    worst: f64,
}

/// What is merged by `balanced` and by `exact`, and whether on the CPU alone.
const PAIRS: [(&str, &str, bool); 9] = [
    ("example", "esm", false),
    ("example", "tsv_m", false),
    ("example", "iso_c", false),
    ("example", "iso_cts", false),
    ("vit", "tsv_m", true),
    ("vit", "iso_c", true),
    ("vit", "iso_cts", true),
    ("minilm", "tsv_m", true),
    ("minilm", "iso_c", true),
];

fn main() {
    let mut trials = Vec::new();
    for device in for_each_device() {
        let bounds = [(Accuracy::Exact, EXACT), (Accuracy::Balanced, BALANCED), (Accuracy::Fast, FAST)];
        for (accuracy, bound) in bounds {
            trials.push(trial(device.clone(), accuracy, bound));
        }
    }
    for device in for_each_device() {
        for (family, method, on_the_cpu) in PAIRS {
            if !on_the_cpu || matches!(device, Device::Cpu) {
                trials.push(pair(device.clone(), family, method));
            }
        }
    }
    claims::run(trials, Stated { cpu: 12, adapter: 7, besides: 0 });
}

/// `balanced` beside `exact`.
fn pair(device: Device, family: &'static str, method: &'static str) -> Trial {
    let folder = root(family);
    let here = folder.join("base").exists();
    let note = if here { "" } else { " [the family's folder is missing]" };
    let ignored = !device.present() || (!here && std::env::var_os("CI").is_none());
    Trial::test(format!("{device}/{family}/{method}/balanced{note}"), move || {
        let scratch = tempfile::tempdir()?;
        let recipe = scratch.path().join("recipe.yaml");
        std::fs::write(&recipe, recipe_of(&folder, method)?)?;
        let [balanced, exact] = [Accuracy::Balanced, Accuracy::Exact].map(|accuracy| {
            let output = scratch.path().join(accuracy.to_string());
            std::fs::create_dir(&output)?;
            device.with(Merge { recipe: &recipe, output: &output, accuracy })?;
            Ok::<_, Failed>(DeltaFile::open(&output.join("delta.safetensors"))?)
        });
        let (balanced, exact) = (balanced?, exact?);
        let mut distance = Distance::default();
        for name in exact.meta().tensors.keys() {
            distance.add(name, &scaled(&balanced, name)?, &scaled(&exact, name)?);
        }
        distance.check(&format!("{device}, {family}, {method}, balanced against exact"), BALANCED)
    })
    .with_ignored_flag(ignored)
}

/// A family's folder.
fn root(family: &str) -> PathBuf {
    match family {
        "example" => Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/vision"),
        "vit" => folder(),
        other => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/family").join(other),
    }
}

/// A recipe of all the tasks of a family.
fn recipe_of(folder: &Path, method: &str) -> Result<String, Failed> {
    let base = folder.join("base");
    let mut text = format!("merge_method: {method}\nbase_model: {}\nmodels:\n", base.display());
    let mut tasks = std::fs::read_dir(folder.join("tasks"))?
        .map(|entry| Ok(entry?.path().with_extension("")))
        .collect::<std::io::Result<Vec<_>>>()?;
    tasks.sort();
    for task in tasks {
        let name = task.file_name().unwrap_or_default();
        let expert = folder.join("experts").join(name);
        let delta = expert.with_extension("delta.safetensors");
        if delta.exists() {
            text += &format!("  - model: {}+delta:{}\n", base.display(), delta.display());
        } else {
            text += &format!("  - model: {}\n", expert.display());
        }
        if method == "esm" {
            let calibration = folder.join("calibration").join(name).with_extension("safetensors");
            text += &format!("    calibration: {}\n", calibration.display());
        }
    }
    Ok(text + "parameters: {alpha: 1.0}\nout_dtype: float32\n")
}

/// How far deltas are from those that are right.
#[derive(Default)]
struct Distance {
    /// `||got - right||^2` and `||right||^2` of all.
    squares: [f64; 2],
    worst: f64,
    worst_in: String,
}

impl Distance {
    fn add(&mut self, name: &str, got: &[f64], right: &[f64]) {
        let sum = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>();
        let error = sum(&mut got.iter().zip(right).map(|(g, w)| g - w));
        let norm = sum(&mut right.iter().copied());
        let relative = if norm > 0.0 { (error / norm).sqrt() } else { error.sqrt() };
        if relative > self.worst || relative.is_nan() {
            (self.worst, self.worst_in) = (relative, name.into());
        }
        self.squares[0] += error;
        self.squares[1] += norm;
    }

    fn check(&self, what: &str, bound: Bound) -> Result<(), Failed> {
        let (all, worst) = ((self.squares[0] / self.squares[1]).sqrt(), self.worst);
        let found = format!(
            "{what}: relative Frobenius error {all:.1e} in all, {worst:.1e} at worst, in {}",
            self.worst_in
        );
        println!("{found}");
        if all <= bound.all && worst <= bound.worst { Ok(()) } else { Err(found.into()) }
    }
}

/// A delta as it is added, but for alpha.
fn scaled(deltas: &DeltaFile, name: &str) -> Result<Vec<f64>, Failed> {
    let beta = deltas.meta().tensors.get(name).ok_or(format!("{name} is missing"))?.beta;
    Ok(values(deltas.file(), name)?.iter().map(|v| beta * v).collect())
}

fn trial(device: Device, accuracy: Accuracy, bound: Bound) -> Trial {
    let here = folder().join("recipe.yaml").exists();
    let wanted = std::env::var_os("CI").is_some();
    let note = if here { "" } else { " [the family's folder is missing]" };
    let ignored = !device.present() || (!here && !wanted);
    let name = format!("{device}/vit-family/{accuracy}{note}");
    Trial::test(name, move || check(&device, accuracy, bound)).with_ignored_flag(ignored)
}

fn folder() -> PathBuf {
    match std::env::var_os("ESMERGE_FAMILY") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/family/vit"),
    }
}

fn check(device: &Device, accuracy: Accuracy, bound: Bound) -> Result<(), Failed> {
    let output = tempfile::tempdir()?;
    device.with(Merge { recipe: &folder().join("recipe.yaml"), output: output.path(), accuracy })?;
    let merged = DeltaFile::open(&output.path().join("delta.safetensors"))?;
    let expected = TensorFile::open(&folder().join("expected/esm.delta.safetensors"))?;
    let mut distance = Distance::default();
    for name in expected.tensors().keys() {
        distance.add(name, &scaled(&merged, name)?, &values(&expected, name)?);
    }
    if merged.meta().tensors.len() != expected.tensors().len() {
        return Err("not the same tensors".into());
    }
    distance.check(&format!("{device}, {accuracy}"), bound)
}

fn values(file: &TensorFile, name: &str) -> Result<Vec<f64>, Failed> {
    let bytes = file.read_values(name, 0..file.meta(name)?.elements())?;
    Ok(bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect())
}

/// A recipe, with the deltas kept.
struct Merge<'a> {
    recipe: &'a Path,
    output: &'a Path,
    accuracy: Accuracy,
}

impl Work for Merge<'_> {
    type Output = Result<(), Failed>;

    fn run<B: Layers>(self, backend: &B) -> Self::Output {
        let overrides = Overrides { accuracy: Some(self.accuracy), ..Overrides::default() };
        let recipe = Recipe::open(self.recipe, &overrides)?;
        let family = Family::open(&recipe)?;
        let plan = plan(&recipe, &family)?;
        let options =
            Options { keep_delta: Some(self.output.join("delta.safetensors")), ..Options::default() };
        let out = OutputDir::create(&self.output.join("out"), options.force)?;
        pollster::block_on(merge(backend, &recipe, &family, &plan, out, &options, &mut Silent))?;
        Ok(())
    }
}
