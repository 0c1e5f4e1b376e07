//! The golden suite: every run of every case file, on every device, within the tolerance stated for each value.
//!
//! The suite knows nothing but the files. Their folder is `ESMERGE_GOLDEN`, else `../shared/golden`, else the subset
//! committed under `tests/goldens/`. A run whose method this version does not have is reported as ignored, by name.

#[path = "golden_suite/case.rs"]
mod case;
#[path = "common/claims.rs"]
mod claims;
#[path = "golden_suite/compare.rs"]
mod compare;
#[path = "common/devices.rs"]
mod devices;
#[path = "golden_suite/elementwise.rs"]
mod elementwise;
#[path = "golden_suite/esm.rs"]
mod esm;
#[path = "golden_suite/esm_plus.rs"]
mod esm_plus;
#[path = "golden_suite/others.rs"]
mod others;
#[path = "common/slabs.rs"]
mod slabs;

use case::{Case, Run};
use claims::Stated;
use compare::Actual;
use devices::{Device, for_each_device};
use esmerge::backend::Backend;
use libtest_mimic::{Failed, Trial};
use std::path::PathBuf;
use std::sync::Arc;

fn main() {
    let (folder, stated) = folder();
    let mut trials = Vec::new();
    for path in case::files(&folder) {
        let case = Arc::new(Case::read(&path));
        for (index, run) in case.runs.iter().enumerate() {
            for device in for_each_device() {
                trials.push(trial(&case, index, run, device));
            }
        }
    }
    claims::run(trials, Stated { cpu: stated, adapter: stated, besides: 0 });
}

/// One run of one case on one device.
fn trial(case: &Arc<Case>, index: usize, run: &Run, device: Device) -> Trial {
    let supported = is_supported(&run.method);
    let what = if supported { "" } else { " [method not in this version]" };
    let name = format!("{device}/{}/{}{what}", case.name, run.id);
    let ignored = !supported || !device.present();
    let case = Arc::clone(case);
    Trial::test(name, move || {
        let run = &case.runs[index];
        let actual = device.with(Job { case: &case, run })?;
        compare::check(&case, run, &actual)
    })
    .with_ignored_flag(ignored)
}

fn is_supported(method: &str) -> bool {
    matches!(method, "esm" | "esm_pp" | "polar" | "tsv_m" | "head_refit")
        || is_elementwise(method)
        || is_spectral(method)
}

fn is_spectral(method: &str) -> bool {
    matches!(method, "iso_c" | "iso_cts" | "regmean")
}

fn is_elementwise(method: &str) -> bool {
    let named = [
        "weight_average",
        "task_arithmetic",
        "model_stock",
        "consensus_ta",
        "ties",
        "breadcrumbs",
        "dare",
        "slerp",
    ];
    named.contains(&method)
}

/// Computes a run's values on whichever backend the device has.
struct Job<'a> {
    case: &'a Case,
    run: &'a Run,
}

impl devices::Work for Job<'_> {
    type Output = Result<Actual, Failed>;

    fn run<B: Backend>(self, backend: &B) -> Self::Output {
        let Job { case, run } = self;
        pollster::block_on(async {
            match run.method.as_str() {
                "esm" => esm::compute(backend, case, run).await,
                "esm_pp" => esm_plus::compute(backend, case, run).await,
                "polar" => others::polar_units(backend, case, run).await,
                "tsv_m" => others::tsv_m(backend, case, run).await,
                "head_refit" => others::head_refit(backend, case, run).await,
                method if is_spectral(method) => others::spectral(backend, case, run).await,
                _ => elementwise::compute(backend, case, run).await,
            }
        })
        .map_err(Failed::from)
    }
}

/// Where the case files are, and how many runs they have at least. In CI a missing folder is a failure, never a quiet fallback.
fn folder() -> (PathBuf, usize) {
    if let Some(folder) = std::env::var_os("ESMERGE_GOLDEN") {
        return (folder.into(), 1);
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let full = root.join("../shared/golden");
    if full.is_dir() {
        return (full, 78);
    }
    assert!(std::env::var_os("CI").is_none(), "in CI the golden vectors must be at {}", full.display());
    println!("{} is not here: running the subset in tests/goldens", full.display());
    (root.join("tests/goldens"), 42)
}
