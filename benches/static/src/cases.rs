//! The pipelines: of the tiled products those that differ in their loops, of every other shader each entry point.

use crate::{Result, compose};
use std::path::Path;

/// One pipeline.
pub struct Case {
    /// By what it is known.
    pub name: String,
    /// The shader's text.
    pub source: String,
    /// Its entry point.
    pub entry: String,
    /// Overrides.
    pub constants: Vec<(&'static str, f64)>,
    /// Whether it is a product, whose loop is looked into.
    pub is_product: bool,
}

/// Name, rows, columns, and the rows and columns that a thread makes, as in `src/kernels/tile.rs`.
const TILES: [(&str, &str, [u32; 4]); 5] = [
    ("large", "gemm_large", [128, 128, 8, 8]),
    ("medium", "gemm_medium", [64, 64, 8, 4]),
    ("small", "gemm_small", [32, 32, 4, 4]),
    ("wide", "gemm_small", [32, 64, 4, 4]),
    ("tall", "gemm_small", [64, 32, 4, 4]),
];

const TYPES: [&str; 3] = ["f32", "f16", "bf16"];

/// Shaders, and the types of the operands that they are asked for.
const PRODUCTS: [(&str, &[[usize; 2]]); 3] =
    [("gemm", &[[0, 0], [1, 1]]), ("gemm_vec4", &[[0, 0]]), ("gemm_vec2", &[[1, 1], [2, 2], [0, 2]])];

/// For software adapters alone.
const SOFTWARE: [&str; 2] = ["gemm_direct", "gemm_blocks"];

pub fn all(shaders: &Path) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for path in compose::files(shaders) {
        for (name, source) in compose::variants(&path) {
            let product = PRODUCTS.iter().find(|(shader, _)| *shader == name);
            if let Some((_, types)) = product {
                cases.extend(products(&name, &source, types));
            } else if !SOFTWARE.contains(&name.as_str()) {
                cases.extend(entries(&name, &source)?);
            }
        }
    }
    Ok(cases)
}

/// Every tile with every combination of transposed operands, the rarer types with the usual one.
fn products(shader: &str, source: &str, types: &[[usize; 2]]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (tile, entry, [rows, cols, tall, wide]) in TILES {
        for &[a, b] in types {
            for (ops, [transpose_a, transpose_b]) in
                [("nt", [0, 1]), ("nn", [0, 0]), ("tn", [1, 0]), ("tt", [1, 1])]
            {
                if [a, b] != [0, 0] && ops != "nt" {
                    continue;
                }
                cases.push(Case {
                    name: format!("{shader} {tile} {ops} {} {}", TYPES[a], TYPES[b]),
                    source: source.to_owned(),
                    entry: entry.to_owned(),
                    constants: vec![
                        ("TILE_M", rows.into()),
                        ("TILE_N", cols.into()),
                        ("DOWN", (rows / tall).into()),
                        ("ACROSS", (cols / wide).into()),
                        ("TRANSPOSE_A", transpose_a.into()),
                        ("TRANSPOSE_B", transpose_b.into()),
                        ("FORMAT_A", a as f64),
                        ("FORMAT_B", b as f64),
                    ],
                    is_product: true,
                });
            }
        }
    }
    cases
}

fn entries(shader: &str, source: &str) -> Result<Vec<Case>> {
    let module = naga::front::wgsl::parse_str(source)
        .map_err(|e| format!("{shader}: {}", e.emit_to_string(source)))?;
    let case = |entry: &naga::EntryPoint| Case {
        name: format!("{shader} {}", entry.name),
        source: source.to_owned(),
        entry: entry.name.clone(),
        constants: Vec::new(),
        is_product: false,
    };
    Ok(module.entry_points.iter().map(case).collect())
}
