//! The claims of `tests/backend.rs` about the kernels, on the adapter of a browser: its compiler of WGSL, its limits, its way
//! of waiting.
//!
//! A claim that fails panics, which ends the module that ran it; whoever runs claims starts another for the next.
#![cfg(target_family = "wasm")]

#[macro_use]
mod claims;
#[path = "../../../tests/common/matrices.rs"]
mod matrices;

#[path = "../../../tests/backend_suite/elementwise.rs"]
mod elementwise;
#[path = "../../../tests/backend_suite/embedding.rs"]
mod embedding;
#[path = "../../../tests/backend_suite/factorizations.rs"]
mod factorizations;
#[path = "../../../tests/backend_suite/moving.rs"]
mod moving;
#[path = "../../../tests/backend_suite/products.rs"]
mod products;
#[path = "../../../tests/backend_suite/reductions.rs"]
mod reductions;
#[path = "../../../tests/backend_suite/selection.rs"]
mod selection;
#[path = "../../../tests/backend_suite/tiles.rs"]
mod tiles;

use claims::{Claim, Way};
use esmerge::kernels::{Products, Tile};
use wasm_bindgen::prelude::*;

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// Sizes around the tiles, blocks and workgroups of the kernels.
const SIZES: [usize; 8] = [1, 3, 17, 33, 64, 100, 127, 257];

/// Asserts that every value is within its bound.
fn assert_near(got: &[f64], expected: &[f64], bounds: impl Fn(usize) -> f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= bounds(i), "{what}, element {i}: {g}, not {e} (within {:e})", bounds(i));
    }
}

#[wasm_bindgen(start)]
fn start() {
    console_error_panic_hook::set_once();
}

/// Everything there is to run, by name.
fn all() -> Vec<(String, Run)> {
    let suites = [
        moving::claims,
        products::claims,
        elementwise::claims,
        reductions::claims,
        factorizations::claims,
        selection::claims,
    ];
    let mut all = Vec::new();
    for way in Way::ALL {
        let named = |claim: Claim| (format!("{way:?}/{}", claim.name).to_lowercase(), Run::Claim(claim, way));
        all.extend(suites.iter().flat_map(|suite| suite()).map(named));
    }
    for products in [Products::Direct, Products::Tiled] {
        let named =
            |(name, test)| (format!("kernels+{products:?}/{name}").to_lowercase(), Run::Test(test, products));
        all.extend(embedding::TESTS.map(named));
    }
    for tile in Tile::ALL {
        let named = |(name, test)| (format!("{tile}/{name}"), Run::Test(test, Products::Only(tile)));
        all.extend(tiles::TESTS.map(named));
    }
    all
}

enum Run {
    Claim(Claim, Way),
    Test(embedding::Test, Products),
}

/// The names of all claims.
#[wasm_bindgen]
pub fn names() -> Vec<String> {
    all().into_iter().map(|(name, _)| name).collect()
}

/// Runs one claim.
#[wasm_bindgen]
pub async fn run(name: String) -> Result<(), String> {
    let found = all().into_iter().find(|(known, _)| *known == name).map(|(_, run)| run);
    match found.ok_or_else(|| format!("there is no claim {name}"))? {
        Run::Claim(claim, way) => (claim.run)(way.open().await).await.map_err(|e| e.to_string()),
        Run::Test(test, products) => {
            embedding::on_its_own("", products, test).await;
            Ok(())
        }
    }
}
