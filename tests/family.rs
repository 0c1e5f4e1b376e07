//! A real family against float64: the tiny vision transformer and its eight experts, merged on every device, every delta
//! compared with the oracle's.
//!
//! The family's folder is `ESMERGE_FAMILY`, else `../shared/family/vit`. Where it is missing the test is ignored, by
//! name; where `CI` is set it fails.

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

/// Relative Frobenius error allowed for each delta at `exact`.
const EXACT: f64 = 1e-4;
/// Sanity bounds for `balanced` and `fast`; the distances themselves are printed, and docs/numerics.md has them.
const BALANCED: f64 = 0.1;
const FAST: f64 = 0.5;

fn main() {
    let mut trials = Vec::new();
    for device in for_each_device() {
        let bounds = [(Accuracy::Exact, EXACT), (Accuracy::Balanced, BALANCED), (Accuracy::Fast, FAST)];
        for (accuracy, tolerance) in bounds {
            trials.push(trial(device.clone(), accuracy, tolerance));
        }
    }
    claims::run(trials, Stated { cpu: 3, adapter: 3, besides: 0 });
}

fn trial(device: Device, accuracy: Accuracy, tolerance: f64) -> Trial {
    let here = folder().join("recipe.yaml").exists();
    let wanted = std::env::var_os("CI").is_some();
    let note = if here { "" } else { " [the family's folder is missing]" };
    let ignored = !device.present() || (!here && !wanted);
    let name = format!("{device}/vit-family/{accuracy}{note}");
    Trial::test(name, move || check(&device, accuracy, tolerance)).with_ignored_flag(ignored)
}

fn folder() -> PathBuf {
    match std::env::var_os("ESMERGE_FAMILY") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/family/vit"),
    }
}

fn check(device: &Device, accuracy: Accuracy, tolerance: f64) -> Result<(), Failed> {
    let output = tempfile::tempdir()?;
    device.with(Merge { output: output.path(), accuracy })?;
    let merged = DeltaFile::open(&output.path().join("delta.safetensors"))?;
    let expected = TensorFile::open(&folder().join("expected/esm.delta.safetensors"))?;
    let (mut worst, mut where_) = (0.0, String::new());
    let (mut all_got, mut all_wanted) = (Vec::new(), Vec::new());
    for name in expected.tensors().keys() {
        let beta = merged.meta().tensors.get(name).ok_or(format!("{name} is missing"))?.beta;
        let got: Vec<f64> = values(merged.file(), name)?.iter().map(|v| beta * v).collect();
        let wanted = values(&expected, name)?;
        let error = relative_error(&got, &wanted);
        if error > worst {
            (worst, where_) = (error, name.clone());
        }
        all_got.extend(got);
        all_wanted.extend(wanted);
    }
    let all = relative_error(&all_got, &all_wanted);
    println!(
        "{device}, {accuracy}: relative Frobenius error {all:.1e} in all, {worst:.1e} at worst, in {where_}"
    );
    let same_tensors = merged.meta().tensors.len() == expected.tensors().len();
    if worst <= tolerance && same_tensors { Ok(()) } else { Err(format!("{worst:e} in {where_}").into()) }
}

fn values(file: &TensorFile, name: &str) -> Result<Vec<f64>, Failed> {
    let bytes = file.read_values(name, 0..file.meta(name)?.elements())?;
    Ok(bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect())
}

fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>();
    let error = squares(&mut got.iter().zip(want).map(|(g, w)| g - w));
    let norm = squares(&mut want.iter().copied());
    if norm > 0.0 { (error / norm).sqrt() } else { error.sqrt() }
}

/// The family's own recipe, with the deltas kept.
struct Merge<'a> {
    output: &'a Path,
    accuracy: Accuracy,
}

impl Work for Merge<'_> {
    type Output = Result<(), Failed>;

    fn run<B: Layers>(self, backend: &B) -> Self::Output {
        let overrides = Overrides { accuracy: Some(self.accuracy), ..Overrides::default() };
        let recipe = Recipe::open(&folder().join("recipe.yaml"), &overrides)?;
        let family = Family::open(&recipe)?;
        let plan = plan(&recipe, &family)?;
        let options =
            Options { keep_delta: Some(self.output.join("delta.safetensors")), ..Options::default() };
        let out = OutputDir::create(&self.output.join("out"), options.force)?;
        pollster::block_on(merge(backend, &recipe, &family, &plan, out, &options, &mut Silent))?;
        Ok(())
    }
}
