//! How far a kernel's numbers are from those that float64 gives: on some of its numbers where there are many.

use super::case::HEAD;
use super::operands::EPSILON;
use super::{Case, Kernel, Size};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Dtype, Op};
use half::{bf16, f16};

/// Rows that are looked at, and columns of each.
const SOME: usize = 24;

/// What one run read and wrote; what it did not is empty.
pub(super) struct Ran {
    /// What was read.
    pub x: Vec<f32>,
    /// What else was read; of eigenproblems, the eigenvalues.
    pub y: Vec<f32>,
    /// What was in the result's place before.
    pub before: Vec<f32>,
    /// The result.
    pub out: Vec<f32>,
    /// Stored numbers, read or written.
    pub stored: Vec<u8>,
}

/// `||got - expected|| / ||expected||` over the numbers that were looked at. Of orthonormal rows, inverse factors and eigenpairs
/// it is the residual of the equation that defines them.
pub(super) fn error(case: &Case, ran: &Ran) -> f64 {
    let Ran { x, y, before, out, stored } = ran;
    let len = case.shape().len();
    let all = |expected: &dyn Fn(usize) -> f64| distance((0..len).map(|i| (at(out, i), expected(i))));
    let Size { rows, cols, .. } = case.size;
    match case.kernel {
        Kernel::Gemm(op_a, op_b) => products(case, out, |b, i, j, l, k| {
            let (m, n) = (rows, cols);
            let a = b * m * k + if op_a == Op::None { i * k + l } else { l * m + i };
            let c = b * k * n + if op_b == Op::None { l * n + j } else { j * k + l };
            at(x, a) * at(y, c)
        }),
        Kernel::Syrk(op) => products(case, out, |b, i, j, l, k| {
            let of = |r: usize| at(x, b * rows * k + if op == Op::None { r * k + l } else { l * rows + r });
            of(i) * of(j)
        }),
        Kernel::Unpack => all(&|i| widened(stored, i, case.dtype)),
        Kernel::Pack => {
            let rounded = |v: f32| match case.dtype {
                Dtype::F16 => f16::from_f32(v).to_f64(),
                Dtype::Bf16 => bf16::from_f32(v).to_f64(),
                Dtype::F32 => f64::from(v),
            };
            distance(x.iter().enumerate().map(|(i, &v)| (widened(stored, i, case.dtype), rounded(v))))
        }
        Kernel::Axpby => all(&|i| 0.5 * at(x, i) + 0.5 * at(before, i)),
        Kernel::CopyBlock => all(&|i| at(x, i)),
        Kernel::ScaleRows => all(&|i| at(before, i) * at(y, i / cols)),
        Kernel::ScaleColumns => all(&|i| at(before, i) * at(y, i / cols / rows * cols + i % cols)),
        Kernel::ReduceRows => norms(out, |i| (0..cols).map(move |j| i * cols + j), x),
        Kernel::ReduceColumns => {
            norms(out, |j| (0..rows).map(move |i| (j / cols * rows + i) * cols + j % cols), x)
        }
        Kernel::RandomNormal => {
            let Ok(expected) = Cpu.random_normal(case.shape(), 1, 1) else { return f64::NAN };
            all(&|i| at(expected.values(), i))
        }
        Kernel::InverseCholesky => inverse_factor(case, x, out),
        Kernel::SymmetricEigen => eigenpairs(case, x, y, out),
        Kernel::LayerNorm => layer_norm(cols, x, y, out),
        Kernel::Attention => attention(case, x, out),
        Kernel::OrthonormalizeRows | Kernel::LeadingEigenpairs => {
            let length = if case.kernel == Kernel::OrthonormalizeRows {
                cols
            } else {
                out.len() / case.size.batch / rows
            };
            orthonormal(out, rows, length)
        }
        Kernel::Polar if rows <= cols => orthonormal(out, rows, cols),
        Kernel::Polar => {
            let place = |i: usize| i / (rows * cols) * rows * cols + i % rows * cols + i / rows % cols;
            let across: Vec<f32> = (0..out.len()).map(|i| out[place(i)]).collect();
            orthonormal(&across, cols, rows)
        }
    }
}

/// A number that is NaN if it is not there.
fn at(values: &[f32], i: usize) -> f64 {
    values.get(i).map_or(f64::NAN, |&v| f64::from(v))
}

/// The number `i` of stored ones.
fn widened(stored: &[u8], i: usize, dtype: Dtype) -> f64 {
    let size = dtype.size();
    match (dtype, stored.get(i * size..(i + 1) * size)) {
        (Dtype::F16, Some(&[a, b])) => f16::from_le_bytes([a, b]).to_f64(),
        (Dtype::Bf16, Some(&[a, b])) => bf16::from_le_bytes([a, b]).to_f64(),
        (Dtype::F32, Some(&[a, b, c, d])) => f32::from_le_bytes([a, b, c, d]).into(),
        _ => f64::NAN,
    }
}

/// The relative distance of pairs of what came and what should have.
fn distance(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (mut off, mut size) = (0.0, 0.0);
    for (got, expected) in pairs {
        off += (got - expected).powi(2);
        size += expected.powi(2);
    }
    if off == 0.0 { 0.0 } else { (off / size.max(f64::MIN_POSITIVE)).sqrt() }
}

/// Some of `0..n`, evenly, the ends among them.
fn some(n: usize) -> impl Iterator<Item = usize> + Clone {
    let count = n.min(SOME);
    (0..count).map(move |i| if count == n { i } else { i * (n - 1) / (count - 1) })
}

/// Sums of products: `term(batch, row, column, of depth, depth)`.
fn products(case: &Case, out: &[f32], term: impl Fn(usize, usize, usize, usize, usize) -> f64) -> f64 {
    let Size { batch, rows, cols, depth } = case.size;
    // of a symmetric product the second number is the depth
    let (cols, depth) = depth.map_or((rows, cols), |depth| (cols, depth));
    let places = some(batch).flat_map(|b| some(rows).flat_map(move |i| some(cols).map(move |j| (b, i, j))));
    distance(places.map(|(b, i, j)| {
        let expected = (0..depth).map(|l| term(b, i, j, l, depth)).sum();
        (at(out, (b * rows + i) * cols + j), expected)
    }))
}

fn norms<I: Iterator<Item = usize>>(out: &[f32], places: impl Fn(usize) -> I, x: &[f32]) -> f64 {
    distance(some(out.len()).map(|i| (at(out, i), places(i).map(|k| at(x, k).powi(2)).sum::<f64>().sqrt())))
}

/// `||Q Q^T - I||` of some rows, relative to `||I||`.
fn orthonormal(q: &[f32], rows: usize, length: usize) -> f64 {
    let of_one = |q: &[f32]| {
        let dot = |i: usize, j: usize| -> f64 {
            (0..length).map(|k| at(q, i * length + k) * at(q, j * length + k)).sum()
        };
        some(rows)
            .flat_map(|i| some(rows).map(move |j| (i, j)))
            .map(|(i, j)| (dot(i, j), f64::from(i == j)))
            .collect::<Vec<_>>()
    };
    distance(q.chunks((rows * length).max(1)).flat_map(of_one))
}

/// `||W G W^T - I||` of some rows.
fn inverse_factor(case: &Case, gram: &[f32], inverse: &[f32]) -> f64 {
    let n = case.size.rows;
    let places = some(case.size.batch).flat_map(|b| some(n).map(move |i| (b, i)));
    distance(places.flat_map(|(b, i)| {
        let w = |i: usize, k: usize| at(inverse, (b * n + i) * n + k);
        let row: Vec<f64> =
            (0..n).map(|l| (0..n).map(|k| w(i, k) * at(gram, (b * n + k) * n + l)).sum()).collect();
        some(n).map(|j| ((0..n).map(|l| row[l] * w(j, l)).sum(), f64::from(i == j))).collect::<Vec<_>>()
    }))
}

/// `||A v - lambda v||` of some eigenpairs, relative to the largest eigenvalue.
fn eigenpairs(case: &Case, a: &[f32], values: &[f32], vectors: &[f32]) -> f64 {
    let n = case.size.rows;
    let residual = |b: usize, i: usize| {
        let v = |k: usize| at(vectors, (b * n + i) * n + k);
        let lambda = at(values, b * n + i);
        let of = |k: usize| (0..n).map(|l| at(a, (b * n + k) * n + l) * v(l)).sum::<f64>() - lambda * v(k);
        (0..n).map(|k| of(k).powi(2)).sum::<f64>().sqrt() / at(values, b * n).abs().max(f64::MIN_POSITIVE)
    };
    let residuals =
        some(case.size.batch).flat_map(|b| some(n).map(move |i| (b, i))).map(|(b, i)| residual(b, i));
    // not `f64::max`, which loses a NaN
    residuals.fold(0.0, |most, r| if r <= most { most } else { r })
}

fn layer_norm(cols: usize, x: &[f32], weight: &[f32], out: &[f32]) -> f64 {
    distance(some(out.len() / cols.max(1)).flat_map(|i| {
        let row = (0..cols).map(|j| at(x, i * cols + j));
        let mean = row.clone().sum::<f64>() / cols as f64;
        let variance = row.clone().map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64;
        let scale = 1.0 / (variance + f64::from(EPSILON)).sqrt();
        let expected = move |(j, v): (usize, f64)| {
            (at(out, i * cols + j), (v - mean) * scale * at(weight, j) + at(weight, j))
        };
        row.enumerate().map(expected).collect::<Vec<_>>()
    }))
}

/// Of tensors that are queries, keys and values at once.
fn attention(case: &Case, x: &[f32], out: &[f32]) -> f64 {
    let Size { batch, rows: tokens, cols: width, .. } = case.size;
    let heads = width / HEAD;
    let places = some(batch).flat_map(|s| some(tokens).map(move |t| (s, t)));
    distance(places.flat_map(|(s, t)| {
        let head = (s + t) % heads.max(1);
        let value = |t: usize, k: usize| at(x, (s * tokens + t) * width + head * HEAD + k);
        let score =
            |u: usize| (0..HEAD).map(|k| value(t, k) * value(u, k)).sum::<f64>() / (HEAD as f64).sqrt();
        let scores: Vec<f64> = (0..tokens).map(score).collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|v| (v - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mixed = |k: usize| weights.iter().enumerate().map(|(u, w)| w * value(u, k)).sum::<f64>() / sum;
        let place = |k: usize| (s * tokens + t) * width + head * HEAD + k;
        (0..HEAD).map(|k| (at(out, place(k)), mixed(k))).collect::<Vec<_>>()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(x: Vec<f32>, out: Vec<f32>) -> Ran {
        Ran { x, y: Vec::new(), before: Vec::new(), out, stored: Vec::new() }
    }

    #[test]
    fn what_is_right_has_no_error_and_what_is_not_has_its_size() {
        let case = |kernel: &str, size: &str| Case {
            kernel: kernel.parse().unwrap(),
            size: size.parse().unwrap(),
            dtype: Dtype::F32,
        };
        let x = vec![3.0, 4.0, 0.0, 5.0];
        assert_eq!(error(&case("reduce_rows", "2x2"), &ran(x.clone(), vec![5.0, 5.0])), 0.0);
        assert!(error(&case("reduce_columns", "2x2"), &ran(x.clone(), vec![3.0, 41f32.sqrt()])) < 1e-7);
        assert!((error(&case("reduce_rows", "2x2"), &ran(x.clone(), vec![5.0, 6.0])) - 0.1414).abs() < 1e-3);
        assert_eq!(error(&case("syrk", "2x2"), &ran(x.clone(), vec![25.0, 20.0, 20.0, 25.0])), 0.0);
        assert!(error(&case("reduce_rows", "2x2"), &ran(x, vec![f32::NAN, 5.0])).is_nan());
        let unit = vec![0.6, 0.8, -0.8, 0.6];
        assert!(error(&case("orthonormalize_rows", "2x2"), &ran(vec![], unit.clone())) < 1e-7);
        assert!(error(&case("polar", "2x2"), &ran(vec![], vec![0.6, 0.8, 0.8, 0.6])) > 0.5);
    }
}
