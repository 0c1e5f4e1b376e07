//! Element by element: sums, scalings and the polarized scaling rule.

use crate::matrices::{Matrix, download, upload};
use crate::{U, assert_near};
use esmerge::backend::{Error, Polarity, Shape, Tensor};

/// Shapes around the workgroup of the kernels.
const SHAPES: [(u64, usize, usize); 5] = [(1, 1, 1), (3, 17, 33), (2, 1, 257), (5, 100, 3), (1, 127, 300)];

fn batch(count: u64, rows: usize, cols: usize, seed: u64) -> Vec<Matrix> {
    (0..count).map(|i| Matrix::random(rows, cols, seed + i)).collect()
}

claims! {
    async fn axpby_adds_what_it_should(backend) {
        for (count, rows, cols) in SHAPES {
            let (x, y) = (batch(count, rows, cols, 1), batch(count, rows, cols, 50));
            for one in [false, true] {
                let given = if one { &x[..1] } else { &x[..] };
                let mut z = upload(backend, &y)?;
                backend.axpby(-2.5, &upload(backend, given)?, 0.3, &mut z)?;
                for (i, z) in download(backend, &z).await?.iter().enumerate() {
                    let (x, beta) = (&x[if one { 0 } else { i }], f64::from(0.3f32));
                    let terms = |k: usize| (-2.5 * x.values[k], beta * y[i].values[k]);
                    let expected: Vec<_> = (0..z.values.len()).map(|k| terms(k).0 + terms(k).1).collect();
                    let bound = |k: usize| 2.0 * U * (terms(k).0.abs() + terms(k).1.abs()) * 1.0001;
                    assert_near(&z.values, &expected, bound, "axpby");
                }
            }
        }
        Ok(())
    }

    async fn axpby_with_beta_zero_ignores_what_was_there(backend) {
        let x = backend.upload(Shape::matrix(3, 5), &[2.0; 15])?;
        let mut y = backend.upload(Shape::matrix(3, 5), &[f32::NAN; 15])?;
        backend.axpby(0.5, &x, 0.0, &mut y)?;
        assert_eq!(backend.download(&y).await?, [1.0; 15]);
        Ok(())
    }

    async fn scalings_multiply_rows_columns_and_matrices_by_their_own_factor(backend) {
        for (count, rows, cols) in SHAPES {
            let x = batch(count, rows, cols, 7);
            for one in [false, true] {
                let factors = if one { 1 } else { count };
                let (r, c, b) = (batch(factors, rows, 1, 20), batch(factors, 1, cols, 30), batch(factors, 1, 1, 40));
                let of = |i: usize| if one { 0 } else { i };
                let mut by_row = upload(backend, &x)?;
                backend.scale_rows(&mut by_row, &upload(backend, &r)?)?;
                let mut by_column = upload(backend, &x)?;
                backend.scale_columns(&mut by_column, &upload(backend, &c)?)?;
                let mut by_matrix = upload(backend, &x)?;
                backend.scale_batches(&mut by_matrix, &upload(backend, &b)?)?;
                let mut divided = upload(backend, &x)?;
                backend.divide_rows(&mut divided, &upload(backend, &r)?)?;
                let got = [by_row, by_column, by_matrix, divided];
                for (kind, got) in got.iter().enumerate() {
                    for (i, got) in download(backend, got).await?.iter().enumerate() {
                        let expected = Matrix::from_fn(rows, cols, |j, k| x[i].at(j, k) * match kind {
                            0 => r[of(i)].at(j, 0),
                            1 => c[of(i)].at(0, k),
                            2 => b[of(i)].at(0, 0),
                            _ => 1.0 / r[of(i)].at(j, 0),
                        });
                        // WGSL allows a division 2.5 units in the last place, of 2 U each
                        let ulps = if kind == 3 { 5.0 } else { 1.0 };
                        let bound = |k: usize| ulps * U * expected.values[k].abs() * 1.0001;
                        assert_near(&got.values, &expected.values, bound, &format!("scaling {kind}"));
                    }
                }
            }
        }
        Ok(())
    }

    async fn power_raises_every_element_and_leaves_zeros(backend) {
        for exponent in [-0.25f32, -1.0, 0.0, 0.5, 2.0] {
            for (count, rows, cols) in SHAPES {
                let x: Vec<Matrix> = batch(count, rows, cols, 3)
                    .iter()
                    .map(|m| Matrix::from_fn(rows, cols, |i, j| m.at(i, j).abs() + 0.01))
                    .collect();
                let mut y = upload(backend, &x)?;
                backend.power(&mut y, exponent)?;
                for (x, y) in x.iter().zip(download(backend, &y).await?) {
                    let expected: Vec<f64> = x.values.iter().map(|v| v.powf(exponent.into())).collect();
                    // exp2(exponent * log2(x)): WGSL allows log2 an error of 2^-21 or 3 ULP, and exp2 3 + 2 |its argument| ULP
                    let logs = |k: usize| (f64::from(exponent) * x.values[k].log2()).abs();
                    let bound = |k: usize| expected[k] * (2f64.powi(-20) * f64::from(exponent).abs().max(1.0) + (16.0 + 12.0 * logs(k)) * U);
                    assert_near(&y.values, &expected, bound, "power");
                }
            }
        }
        let mut zero = backend.upload(Shape::matrix(1, 3), &[0.0, 4.0, 0.0])?;
        backend.power(&mut zero, -0.5)?;
        assert_eq!(backend.download(&zero).await?[0], 0.0);
        assert_eq!(backend.download(&zero).await?[2], 0.0);
        Ok(())
    }

    async fn unit_scale_gives_the_power_of_two_that_brings_a_number_to_one(backend) {
        let x = [0.0f32, 1.18e-38, 3e-20, 0.75, 1.0, 1.9999999, 2.0, 5e7, 1.0e38, 3.4e38, f32::INFINITY];
        let mut s = backend.upload(Shape::matrix(1, x.len()), &x)?;
        backend.unit_scale(&mut s)?;
        let s = backend.download(&s).await?;
        for (x, s) in x.iter().zip(&s) {
            assert!(s.log2().fract() == 0.0 && s.log2().abs() <= 126.0, "{x:e}: {s:e}");
            let within = (1.18e-38..2f32.powi(127)).contains(x);
            assert!(!within || (1.0..2.0).contains(&(x * s)), "{x:e}: {s:e}");
        }
        assert_eq!((s[0], s[10]), (2f32.powi(126), 2f32.powi(-126)));
        Ok(())
    }

    async fn dividing_a_row_by_zero_makes_it_zero(backend) {
        let mut x = backend.upload(Shape::matrix(2, 3), &[1.0, 2.0, 3.0, f32::INFINITY, 5.0, 6.0])?;
        backend.divide_rows(&mut x, &backend.upload(Shape::matrix(2, 1), &[2.0, 0.0])?)?;
        assert_eq!(backend.download(&x).await?, [0.5, 1.0, 1.5, 0.0, 0.0, 0.0]);
        Ok(())
    }

    async fn polarize_follows_the_rule(backend) {
        let polarities = [Polarity::Full, Polarity::Amplify, Polarity::Suppress, Polarity::Reversed];
        for (count, rows, cols) in SHAPES {
            let mut v = batch(count, rows, cols, 3);
            v.iter_mut().for_each(|m| m.values.iter_mut().for_each(|x| *x = x.abs() + 0.01));
            v[0].values[0] = if v[0].values.len() > 1 { 0.0 } else { 0.5 };
            for polarity in polarities {
                for exponent in [1.0, 2.0, 3.0, 0.15, 1.5] {
                    let mut x = upload(backend, &v)?;
                    backend.polarize(&mut x, exponent, polarity)?;
                    for (got, v) in download(backend, &x).await?.iter().zip(&v) {
                        let (p, n) = (f64::from(exponent), v.values.len() as f64);
                        let mean = v.values.iter().sum::<f64>() / n;
                        let expected: Vec<_> = v.values.iter().map(|&x| polarity.scale(x, mean, p)).collect();
                        // the mean: a sum in a tree under at most n / 64 additions, and a division; the quotient,
                        // another; both to the power; then a product, or a power, which WGSL makes of a logarithm
                        // (2^-21 absolute, in units of 2) and an exponential (3 + 2 |x| units)
                        let logarithm = v.values.iter().map(|x| (x / mean).max(1e-3).log2().abs()).fold(0.0, f64::max);
                        let power = p * 8.0 * (1.0 + logarithm) + 2.0 * (3.0 + 2.0 * p * logarithm);
                        let relative = U * (p * (n / 64.0 + 8.0 + 10.0) + power + 5.0);
                        assert_near(&got.values, &expected, |k| expected[k] * relative, &format!("{polarity:?} {exponent}"));
                    }
                }
            }
        }
        Ok(())
    }

    async fn polarize_gives_zeros_where_the_mean_is_zero(backend) {
        let mut x = backend.zeros(Shape::new(2, 3, 5))?;
        backend.polarize(&mut x, 2.0, Polarity::Full)?;
        assert_eq!(backend.download(&x).await?, [0.0; 30]);
        Ok(())
    }

    async fn clear_small_clears_what_is_not_above_its_share_of_the_largest(backend) {
        for (count, rows, cols) in SHAPES {
            let v = batch(count, rows, cols, 5);
            for fraction in [0.0f32, 1e-5, 0.5, 1.0] {
                let mut x = upload(backend, &v)?;
                backend.clear_small(&mut x, fraction)?;
                for (got, v) in download(backend, &x).await?.iter().zip(&v) {
                    let cut = fraction * v.values.iter().fold(0.0f32, |most, &x| most.max(x as f32));
                    let kept = |&x: &f64| if x as f32 <= cut { 0.0 } else { x };
                    assert_eq!(got.values, v.values.iter().map(kept).collect::<Vec<_>>(), "{fraction}");
                }
            }
        }
        let mut x = backend.upload(Shape::new(2, 1, 3), &[f32::NAN, 1.0, 2.0, -3.0, -0.5, -4.0])?;
        backend.clear_small(&mut x, 0.75)?;
        let x = backend.download(&x).await?;
        assert!(x[0].is_nan(), "NaN is not small");
        assert_eq!(x[1..], [0.0, 2.0, 0.0, 0.0, 0.0]);
        Ok(())
    }

    async fn elementwise_operations_on_nothing_do_nothing(backend) {
        let mut x = backend.zeros(Shape::new(2, 0, 3))?;
        let y = backend.zeros(x.shape())?;
        backend.axpby(1.0, &y, 1.0, &mut x)?;
        backend.scale_columns(&mut x, &backend.zeros(Shape::new(2, 1, 3))?)?;
        backend.scale_rows(&mut x, &backend.zeros(Shape::new(2, 0, 1))?)?;
        backend.polarize(&mut x, 2.0, Polarity::Full)?;
        backend.clear_small(&mut x, 0.5)?;
        assert!(backend.download(&x).await?.is_empty());
        Ok(())
    }

    async fn factors_that_do_not_fit_are_errors(backend) {
        let mut x = backend.zeros(Shape::new(2, 3, 4))?;
        let wrong = backend.zeros(Shape::new(2, 3, 4))?;
        let three = backend.zeros(Shape::new(3, 3, 4))?;
        let results = [
            backend.scale_rows(&mut x, &wrong),
            backend.divide_rows(&mut x, &wrong),
            backend.scale_columns(&mut x, &wrong),
            backend.scale_batches(&mut x, &wrong),
            backend.axpby(1.0, &three, 1.0, &mut x),
        ];
        assert!(results.iter().all(|r| matches!(r, Err(Error::Shape { .. }))), "{results:?}");
        Ok(())
    }
}
