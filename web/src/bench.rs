//! Measuring, case by case.

use crate::device::gpu;
use crate::{Result, json, words};
use esmerge::backend::gpu::{Config, Gpu};
use esmerge::bench::{self, Bench, Case, Selection};
use esmerge::kernels::{Products, Tile};
use serde_json::json;
use wasm_bindgen::prelude::*;

fn all() -> Result<Vec<Case>> {
    bench::cases(&Selection::default()).map_err(words)
}

/// All cases, as JSON, in an order that stays.
#[wasm_bindgen]
pub fn bench_cases() -> Result<String> {
    let case = |case: &Case| {
        json!({
            "kernel": case.kernel.name(), "size": case.size.to_string(), "dtype": case.dtype.to_string(),
            "flops": case.flops(), "bytes": case.bytes(),
        })
    };
    json(&all()?.iter().map(case).collect::<Vec<_>>())
}

/// What the adapter can do at most, as JSON.
#[wasm_bindgen]
pub async fn bench_peak(seconds: f64) -> Result<String> {
    let gpu = gpu().await?;
    json(&Bench::new(&gpu).peak(seconds).await.map_err(words)?)
}

/// Whether a case is measured without having been asked for by itself, at a peak of so many GFLOP/s.
#[wasm_bindgen]
pub fn bench_affordable(case: usize, gflops: f64) -> Result<bool> {
    let all = all()?;
    Ok(all.get(case).is_some_and(|case| case.is_affordable(bench::Peak { gflops, gbytes: 0.0 })))
}

/// One case, as JSON.
#[wasm_bindgen]
pub async fn bench_case(case: usize, seconds: f64) -> Result<String> {
    let all = all()?;
    let case = all.get(case).ok_or_else(|| words("there is no such case"))?;
    let gpu = gpu().await?;
    json(&Bench::new(&gpu).measure(case, seconds).await.map_err(words)?)
}

/// The names of the tiles by which products can be computed.
#[wasm_bindgen]
pub fn bench_tiles() -> Vec<String> {
    Tile::ALL.iter().map(ToString::to_string).collect()
}

/// A product of some size by one tile alone, as JSON.
#[wasm_bindgen]
pub async fn bench_tile(tile: &str, size: &str, seconds: f64) -> Result<String> {
    let tile: Tile = tile.parse().map_err(|_| words(format!("there is no tile {tile}")))?;
    let selection = Selection {
        kernels: vec!["gemm".parse().map_err(words)?],
        sizes: vec![size.parse().map_err(words)?],
        dtypes: vec![],
    };
    let config =
        Config { features: bench::features(), products: Some(Products::Only(tile)), ..Config::default() };
    let gpu = Gpu::open_with(Some(""), &config).await.map_err(words)?;
    let cases = bench::cases(&selection).map_err(words)?;
    let case = cases.first().ok_or_else(|| words("there is no such case"))?;
    let measured = Bench::new(&gpu).measure(case, seconds).await.map_err(words);
    gpu.device().destroy();
    json(&measured?)
}
