//! Claims about every operation of a backend, on every device and every way to open it, against plain f64 arithmetic
//! and within bounds that follow from f32 rounding; and about the kernels in another program's hands.

#[path = "common/claims.rs"]
#[macro_use]
mod claims;
#[path = "common/devices.rs"]
mod devices;
#[path = "common/matrices.rs"]
mod matrices;

#[path = "backend_suite/elementwise.rs"]
mod elementwise;
#[path = "backend_suite/embedding.rs"]
mod embedding;
#[path = "backend_suite/factorizations.rs"]
mod factorizations;
#[path = "backend_suite/moving.rs"]
mod moving;
#[path = "backend_suite/opening.rs"]
mod opening;
#[path = "backend_suite/products.rs"]
mod products;
#[path = "backend_suite/reductions.rs"]
mod reductions;
#[path = "backend_suite/selection.rs"]
mod selection;
#[path = "backend_suite/tiles.rs"]
mod tiles;

use claims::Stated;
use devices::{Device, Variant, for_each_device};

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// Sizes around the tiles, blocks and workgroups of the kernels.
const SIZES: [usize; 8] = [1, 3, 17, 33, 64, 100, 127, 257];

fn main() {
    let mut devices = Vec::new();
    for device in for_each_device() {
        devices.push(device.clone());
        if let Device::Gpu(..) = device {
            devices.extend([Variant::Unchecked, Variant::Tiled, Variant::Small].map(|v| device.opened(v)));
        }
    }
    let suites = [
        moving::claims_on,
        products::claims_on,
        elementwise::claims_on,
        reductions::claims_on,
        factorizations::claims_on,
        selection::claims_on,
    ];
    let mut trials: Vec<_> = suites.iter().flat_map(|suite| suite(&devices)).collect();
    trials.extend(embedding::trials());
    trials.extend(tiles::trials());
    trials.extend(opening::trials());
    claims::run(trials, Stated { cpu: 64, adapter: 314, besides: 1 });
}

/// Asserts that every value is within its bound.
fn assert_near(got: &[f64], expected: &[f64], bounds: impl Fn(usize) -> f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= bounds(i), "{what}, element {i}: {g}, not {e} (within {:e})", bounds(i));
    }
}
