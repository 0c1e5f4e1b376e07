//! Plans and merges.

use crate::device::{device, on_device};
use crate::{Result, json, words};
use esmerge::checkpoint::OutputDir;
use esmerge::pipeline::{self, Options, Progress, Rescale};
use esmerge::plan::{Family, plan};
use esmerge::recipe::{Overrides, Recipe};
use esmerge::report::Planned;
use serde_json::json;
use std::path::{Path, PathBuf};
use wasm_bindgen::prelude::*;

/// Bytes of one output file.
const SHARD: u64 = 5_000_000_000;

/// Bytes for merged deltas and what is read ahead: a page has 4 GiB in all, and many machines have less to give.
const MEMORY: u64 = 128 << 20;

#[wasm_bindgen]
extern "C" {
    /// Hears how it goes on: `tell(event, text, number)`.
    pub type Listener;

    #[wasm_bindgen(method, structural)]
    fn tell(this: &Listener, event: &str, text: &str, number: f64);
}

struct Told(Listener);

impl Progress for Told {
    fn start(&mut self, bytes: u64) {
        self.0.tell("start", "", bytes as f64);
    }

    fn layer(&mut self, name: &str) {
        self.0.tell("layer", name, 0.0);
    }

    fn advance(&mut self, bytes: u64) {
        self.0.tell("advance", "", bytes as f64);
    }

    fn probe(&mut self, alpha: f64, done: usize, expected: usize) {
        let share = done as f64 / expected.max(1) as f64;
        self.0.tell("probe", &format!("alpha {alpha:.3}, after {done} of about {expected}"), share);
    }

    fn warn(&mut self, message: &str) {
        self.0.tell("warn", message, 0.0);
    }
}

fn open(recipe: &str) -> Result<Recipe> {
    Recipe::open(Path::new(recipe), &Overrides::default()).map_err(words)
}

/// What a recipe would do, as `esmerge merge --dry-run --json` says it, with its notes.
#[wasm_bindgen]
pub fn plan_of(recipe: &str) -> Result<String> {
    let recipe = open(recipe)?;
    if let Some(missing) = recipe.missing.first() {
        return Err(words(missing));
    }
    let family = Family::open(&recipe).map_err(words)?;
    let plan = plan(&recipe, &family).map_err(words)?;
    let beside = pipeline::check_files_beside(&family).map_err(words)?;
    let deltas = (pipeline::delta_bytes(&plan, true), pipeline::room_for_deltas(MEMORY));
    let planned = Planned::new(&recipe, &plan, deltas);
    json(&json!({ "plan": planned, "notes": recipe.notes, "beside": beside }))
}

/// Carries a recipe out into a folder, and keeps the merged deltas in a file beside it where that can be done. Gives the report,
/// as JSON.
#[wasm_bindgen]
pub async fn merge(
    recipe: &str,
    out: &str,
    keep_delta: Option<String>,
    on: &str,
    listener: Listener,
) -> Result<String> {
    let (recipe, out) = (open(recipe)?, PathBuf::from(out));
    let output = OutputDir::create(&out, true).map_err(words)?;
    let family = Family::open(&recipe).map_err(words)?;
    let plan = plan(&recipe, &family).map_err(words)?;
    let options = Options {
        shard_size: SHARD,
        max_memory: MEMORY,
        keep_delta: keep_delta.map(PathBuf::from),
        force: true,
        ..Options::default()
    };
    let mut told = Told(listener);
    plan.warnings.iter().for_each(|warning| told.warn(warning));
    let device = device(on).await?;
    let merged = on_device!(&device, |backend| {
        pipeline::merge(backend, &recipe, &family, &plan, output, &options, &mut told).await
    });
    json(&merged.map_err(words)?)
}

/// Another alpha from kept deltas.
#[wasm_bindgen]
pub async fn rescale(
    delta: &str,
    base: &str,
    alpha: f64,
    out: &str,
    on: &str,
    listener: Listener,
) -> Result<String> {
    let request = Rescale {
        delta: PathBuf::from(delta),
        base: PathBuf::from(base),
        alpha,
        shard_size: SHARD,
        max_memory: MEMORY,
    };
    let output = OutputDir::create(Path::new(out), true).map_err(words)?;
    let device = device(on).await?;
    let mut told = Told(listener);
    let made = on_device!(&device, |backend| pipeline::rescale(backend, &request, output, &mut told).await);
    json(&made.map_err(words)?)
}
