//! Sizes, numbers, and what the product should be.

use crate::Result;
use std::fmt;
use std::str::FromStr;

/// `C (m x n) = A (m x k) B (k x n)`, `batch` times.
#[derive(Clone, Copy)]
pub struct Shape {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Shape {
    pub fn flops(self) -> f64 {
        2.0 * (self.batch * self.m * self.n * self.k) as f64
    }
}

impl FromStr for Shape {
    type Err = Box<dyn std::error::Error>;

    fn from_str(text: &str) -> Result<Shape> {
        let (batch, sizes) = text.split_once(':').unwrap_or(("1", text));
        let sizes = sizes.split('x').map(str::parse).collect::<std::result::Result<Vec<usize>, _>>();
        match (batch.parse(), sizes.as_deref()) {
            (Ok(batch @ 1..), Ok(&[m, n, k])) if m.min(n).min(k) > 0 => Ok(Shape { batch, m, n, k }),
            _ => Err(format!("'{text}' is no shape: use MxNxK or BATCH:MxNxK").into()),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { batch, m, n, k } = self;
        let batch = if *batch == 1 { String::new() } else { format!("{batch}:") };
        f.pad(&format!("{batch}{m}x{n}x{k}"))
    }
}

/// Row-major factors, and some rows of the product in f64.
pub struct Inputs {
    pub shape: Shape,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    /// Rows of C, of all members of the batch counted through.
    rows: Vec<usize>,
    reference: Vec<f64>,
}

/// Rows that are checked.
const CHECKED: usize = 48;

impl Inputs {
    pub fn new(shape: Shape) -> Inputs {
        let Shape { batch, m, n, k } = shape;
        let mut state = 1u64;
        let mut draw = |len: usize| (0..len).map(|_| uniform(&mut state)).collect::<Vec<f32>>();
        let (a, b) = (draw(batch * m * k), draw(batch * k * n));
        // A stride that is coprime to tile sizes meets every part of a tile.
        let step = (batch * m / CHECKED).max(1) | 1;
        let rows: Vec<usize> = (0..batch * m).step_by(step).collect();
        let mut reference = vec![0.0; rows.len() * n];
        for (&row, sums) in rows.iter().zip(reference.chunks_exact_mut(n)) {
            let b = &b[row / m * k * n..][..k * n];
            for (&x, line) in a[row * k..][..k].iter().zip(b.chunks_exact(n)) {
                sums.iter_mut().zip(line).for_each(|(sum, &y)| *sum += f64::from(x) * f64::from(y));
            }
        }
        Inputs { shape, a, b, rows, reference }
    }

    /// The relative error of a row-major product, in the Frobenius norm of the rows that are checked.
    pub fn error(&self, product: &[f32]) -> f64 {
        let Shape { batch, m, n, .. } = self.shape;
        if product.len() != batch * m * n {
            return f64::INFINITY;
        }
        let (mut difference, mut size) = (0.0, 0.0);
        for (&row, right) in self.rows.iter().zip(self.reference.chunks_exact(n)) {
            for (&x, y) in product[row * n..][..n].iter().zip(right) {
                difference += (f64::from(x) - y).powi(2);
                size += y * y;
            }
        }
        (difference / size).sqrt()
    }
}

/// Between -1 and 1 (splitmix64).
fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f32 / (1 << 23) as f32 - 1.0
}
