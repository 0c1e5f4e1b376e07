//! Feature consistency.

/// Linear CKA of two feature matrices with `n` rows, columns centred:
/// `||X^T Y||_F^2 / (||X^T X||_F ||Y^T Y||_F)` (Kornblith et al., ICML 2019), in f64. `None` where a matrix is constant.
pub fn linear_cka(x: &[f64], y: &[f64], n: usize) -> Option<f64> {
    if n == 0 {
        return None;
    }
    let (x, y) = (centred(x, n), centred(y, n));
    // with K = X X^T: ||X^T Y||_F^2 = <K_x, K_y>; n x n is smaller than d x d for few samples, and never larger than asked
    let (dx, dy) = (x.len() / n, y.len() / n);
    let (cross, own_x, own_y) = if n <= dx.max(dy) {
        let (k, l) = (outer(&x, n), outer(&y, n));
        (inner(&k, &l), inner(&k, &k), inner(&l, &l))
    } else {
        let square = |m: Vec<f64>| m.iter().map(|v| v * v).sum::<f64>();
        (square(product(&x, &y, n)), square(product(&x, &x, n)), square(product(&y, &y, n)))
    };
    let scale = (own_x * own_y).sqrt();
    (scale > 0.0).then(|| cross / scale)
}

/// Each column minus its mean.
fn centred(x: &[f64], n: usize) -> Vec<f64> {
    let d = x.len() / n;
    let mut means = vec![0.0; d];
    for row in x.chunks(d.max(1)) {
        means.iter_mut().zip(row).for_each(|(m, v)| *m += v / n as f64);
    }
    x.chunks(d.max(1)).flat_map(|row| row.iter().zip(&means).map(|(v, m)| v - m)).collect()
}

/// `X X^T`
fn outer(x: &[f64], n: usize) -> Vec<f64> {
    let d = x.len() / n;
    let row = |i: usize| &x[i * d..(i + 1) * d];
    (0..n * n).map(|at| inner(row(at / n), row(at % n))).collect()
}

/// `X^T Y`
fn product(x: &[f64], y: &[f64], n: usize) -> Vec<f64> {
    let (dx, dy) = (x.len() / n, y.len() / n);
    let mut out = vec![0.0; dx * dy];
    for i in 0..n {
        let (x, y) = (&x[i * dx..(i + 1) * dx], &y[i * dy..(i + 1) * dy]);
        for (out, a) in out.chunks_mut(dy).zip(x) {
            out.iter_mut().zip(y).for_each(|(o, b)| *o += a * b);
        }
    }
    out
}

fn inner(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(n: usize, d: usize, seed: f64) -> Vec<f64> {
        (0..n * d).map(|i| ((i as f64 + 1.3) * seed).sin()).collect()
    }

    #[test]
    fn cka_is_one_for_rotated_scaled_and_shifted_features() {
        for (n, d) in [(5, 2), (4, 5), (40, 2)] {
            let x = features(n, d, 1.7);
            let turned: Vec<f64> = x
                .chunks(d)
                .flat_map(|r| {
                    let mut r = r.to_vec();
                    let (a, b) = (r[0], r[1]);
                    (r[0], r[1]) = (0.6 * a - 0.8 * b, 0.8 * a + 0.6 * b);
                    r.into_iter().map(|v| 3.0 * v + 2.0).collect::<Vec<_>>()
                })
                .collect();
            assert!((linear_cka(&x, &turned, n).unwrap() - 1.0).abs() < 1e-12);
            assert!(linear_cka(&x, &features(n, d, 0.9), n).unwrap() < 0.999);
        }
        assert_eq!(linear_cka(&[1.0, 1.0], &[1.0, 2.0], 2), None);
    }

    #[test]
    fn both_ways_to_compute_it_agree() {
        let (x, y) = (features(6, 5, 1.1), features(6, 7, 0.7));
        let by_rows = linear_cka(&x, &y, 6).unwrap();
        let (cx, cy) = (centred(&x, 6), centred(&y, 6));
        let square = |m: Vec<f64>| m.iter().map(|v| v * v).sum::<f64>();
        let by_columns = square(product(&cx, &cy, 6))
            / (square(product(&cx, &cx, 6)) * square(product(&cy, &cy, 6))).sqrt();
        assert!((by_rows - by_columns).abs() < 1e-12);
    }
}
