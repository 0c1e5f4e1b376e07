//! A merge in a process of its own (the test binary, started again), which tells how much memory it took.

use esmerge::backend::cpu::Cpu;
use esmerge::checkpoint::OutputDir;
use esmerge::pipeline::{Options, Silent, merge};
use esmerge::plan::{Family, plan};
use esmerge::recipe::{Overrides, Recipe};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Set for that process: the folder of its recipe, and its budget in bytes.
const FOLDER: &str = "ESMERGE_TEST_FOLDER";
const BUDGET: &str = "ESMERGE_TEST_BUDGET";

pub const MIB: f64 = (1 << 20) as f64;

/// What a merge took, in MiB.
#[derive(Debug)]
#[allow(dead_code)] // not every test asks for everything
pub struct Memory {
    /// Resident before it opened any file.
    pub baseline: f64,
    /// Resident at the most.
    pub peak: f64,
    /// Merged deltas in memory and on disk.
    pub in_memory: f64,
    pub on_disk: f64,
}

/// Merges by `recipe.yaml` of the folder, in the process of a test called `merging_process` that calls [`merge_here`].
pub fn merge_apart(folder: &Path, budget: u64) -> Memory {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["merging_process", "--exact", "--nocapture", "--include-ignored"])
        .env(FOLDER, folder)
        .env(BUDGET, budget.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let number = |key: &str| -> f64 {
        let after = text.split(key).nth(1).unwrap_or_else(|| panic!("no {key} in {text}"));
        after.split_whitespace().next().unwrap().parse().unwrap()
    };
    Memory {
        baseline: number("baseline_mib="),
        peak: number("peak_mib="),
        in_memory: number("in_memory_mib="),
        on_disk: number("on_disk_mib="),
    }
}

/// What the other process does; nothing in any other.
pub fn merge_here() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let baseline = resident("VmRSS:");
    let recipe = Recipe::open(&folder.join("recipe.yaml"), &Overrides::default()).unwrap();
    let family = Family::open(&recipe).unwrap();
    let plan = plan(&recipe, &family).unwrap();
    let max_memory = std::env::var(BUDGET).unwrap().parse().unwrap();
    let options = Options { max_memory, ..Options::default() };
    let output = OutputDir::create(&folder.join("out"), false).unwrap();
    let progress = &mut Silent;
    let merged = merge(&Cpu, &recipe, &family, &plan, output, &options, progress);
    let stages = pollster::block_on(merged).unwrap().stages.unwrap();
    let mib = |bytes: u64| bytes as f64 / MIB;
    println!(
        "\nbaseline_mib={baseline} peak_mib={} in_memory_mib={} on_disk_mib={} ",
        resident("VmHWM:"),
        mib(stages.bytes_of_deltas_in_memory),
        mib(stages.bytes_of_deltas_on_disk)
    );
}

/// In MiB, by the system.
fn resident(key: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
